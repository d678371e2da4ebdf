//! What machines say of each thing that was tried, as the table of a page.

/// What the table stands between.
const BEGIN: &str = "<!-- begin generated: kernels -->\n";
const END: &str = "<!-- end generated: kernels -->";

/// The row that says which kernel it was.
pub(super) const KERNEL: &str = "kernel";

/// What a machine says: each thing that was tried, and how it works.
pub(super) type Results = Vec<(String, String)>;

/// A kernel, and what its machine says.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Column {
    pub(super) name: String,
    pub(super) results: Results,
}

/// What a line of a machine's console says of one thing.
pub(super) fn result(line: &str) -> Option<(String, String)> {
    let (what, how) = line.strip_prefix("RESULT\t")?.split_once('\t')?;
    Some((what.to_owned(), how.trim().replace('|', "/")))
}

/// A column for each kernel, a row for each thing, in the order in which they were tried.
pub(super) fn of(columns: &[Column]) -> String {
    let mut rows: Vec<&str> = Vec::new();
    for (what, _) in columns.iter().flat_map(|column| &column.results) {
        if !rows.contains(&what.as_str()) {
            rows.push(what);
        }
    }
    let names: Vec<&str> = columns.iter().map(|column| column.name.as_str()).collect();
    let mut text = format!("| | {} |\n|{}\n", names.join(" | "), "---|".repeat(columns.len() + 1));
    for row in rows {
        let found = |column: &Column| {
            let how = column.results.iter().find(|(what, _)| what == row).map(|(_, how)| how.clone());
            how.unwrap_or_else(|| "not tried".to_owned())
        };
        let cells: Vec<String> = columns.iter().map(found).collect();
        text.push_str(&format!("| {row} | {} |\n", cells.join(" | ")));
    }
    text
}

/// `page` with these columns in place of those of the same names; all in the order of `names`, without any others.
pub(super) fn replaced(page: &str, names: &[String], new: Vec<Column>) -> Option<String> {
    let (before, rest) = page.split_once(BEGIN)?;
    let (old, after) = rest.split_once(END)?;
    let known: Vec<Column> = new.into_iter().chain(parsed(old)).collect();
    let columns: Vec<Column> = names
        .iter()
        .map(|name| {
            let found = known.iter().find(|column| column.name == *name).cloned();
            found.unwrap_or_else(|| Column { name: name.clone(), results: Vec::new() })
        })
        .collect();
    Some(format!("{before}{BEGIN}\n{}\n{END}{after}", of(&columns)))
}

/// The columns of a table that [`of`] made.
fn parsed(table: &str) -> Vec<Column> {
    let mut lines = table.lines().map(cells).filter(|cells| !cells.is_empty());
    let Some(names) = lines.next() else { return Vec::new() };
    let rows: Vec<Vec<&str>> = lines.filter(|cells| !cells[0].starts_with("---")).collect();
    let column = |(number, name): (usize, &&str)| {
        let results = rows.iter().filter_map(|row| {
            let how = row.get(number).filter(|how| **how != "not tried")?;
            Some((row[0].to_owned(), (*how).to_owned()))
        });
        Column { name: (*name).to_owned(), results: results.collect() }
    };
    names.iter().enumerate().skip(1).map(column).collect()
}

fn cells(line: &str) -> Vec<&str> {
    let inner = line.strip_prefix('|').and_then(|line| line.strip_suffix('|'));
    inner.map(|inner| inner.split('|').map(str::trim).collect()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn column(name: &str, said: &str) -> Column {
        Column { name: name.to_owned(), results: said.lines().filter_map(result).collect() }
    }

    #[test]
    fn what_machines_say_becomes_a_table() {
        let said = "Linux version 6.1\nRESULT\tkernel\t6.1.0\nnoise\nRESULT\tudp\tfast\nPASSED\n";
        let columns = [column("6.1", said), column("5.10", "RESULT\tkernel\t5.10.0 | cloud\n")];
        let table = of(&columns);
        assert_eq!(
            table,
            "| | 6.1 | 5.10 |\n|---|---|---|\n| kernel | 6.1.0 | 5.10.0 / cloud |\n| udp | fast | not tried |\n"
        );
        assert_eq!(parsed(&table), columns);
    }

    #[test]
    fn kernels_that_were_not_booted_keep_their_columns() {
        let old = of(&[column("6.1", "RESULT\tudp\tno\n"), column("5.10", "RESULT\tudp\tkernel path\n")]);
        let page = format!("before\n{BEGIN}\n{old}\n{END}\nafter\n");
        let names = ["5.10", "6.1", "newest"].map(str::to_owned);
        let new = replaced(&page, &names, vec![column("6.1", "RESULT\tudp\tfast\n")]).expect("a place");
        let table =
            "| | 5.10 | 6.1 | newest |\n|---|---|---|---|\n| udp | kernel path | fast | not tried |\n";
        assert_eq!(new, format!("before\n{BEGIN}\n{table}\n{END}\nafter\n"));
        assert_eq!(replaced("no table", &names, Vec::new()), None);
    }
}
