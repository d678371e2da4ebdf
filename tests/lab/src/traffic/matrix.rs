//! Who can talk to whom.

use std::{fmt, sync::Mutex, thread, time::Duration};

use anyhow::{Result, bail};

use super::{Endpoint, ping::ping};

/// Round-trip times between all pairs, or that there was no answer.
#[derive(Clone, Debug)]
pub struct Matrix {
    /// Names, in the order of rows and columns.
    pub names: Vec<String>,
    /// By sender, then receiver; `Err` holds what went wrong. The diagonal is `None`.
    pub cells: Vec<Vec<Option<Result<Duration, String>>>>,
}

/// Pings from every endpoint to every other, the senders at the same time.
pub fn reachability(endpoints: &[Endpoint]) -> Matrix {
    let empty = vec![None; endpoints.len()];
    let cells: Vec<_> = endpoints.iter().map(|_| Mutex::new(empty.clone())).collect();
    thread::scope(|scope| {
        for (from, row) in endpoints.iter().zip(&cells) {
            scope.spawn(move || {
                let pings = endpoints
                    .iter()
                    .map(|to| (from != to).then(|| ping(from, to, 56).map_err(|error| format!("{error:#}"))));
                let pings = pings.collect();
                if let Ok(mut row) = row.lock() {
                    *row = pings;
                }
            });
        }
    });
    let cells = cells.into_iter().map(|row| row.into_inner().unwrap_or_default()).collect();
    Matrix { names: endpoints.iter().map(|endpoint| endpoint.name().to_owned()).collect(), cells }
}

impl Matrix {
    /// What went wrong, one message per pair.
    pub fn failures(&self) -> Vec<&str> {
        let failed = |cell: &'_ Option<Result<Duration, String>>| cell.as_ref().is_some_and(Result::is_err);
        let cells = self.cells.iter().flatten().filter(|cell| failed(cell));
        cells.filter_map(|cell| cell.as_ref()?.as_ref().err().map(String::as_str)).collect()
    }

    /// Fails, with the whole matrix, unless everyone reaches everyone.
    pub fn check_complete(&self) -> Result<()> {
        let failures = self.failures();
        if failures.is_empty() { Ok(()) } else { bail!("{self}{}", failures.join("\n")) }
    }
}

impl fmt::Display for Matrix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, row) in self.names.iter().zip(&self.cells) {
            write!(f, "{name:>16}")?;
            for cell in row {
                let mark = match cell {
                    None => "-",
                    Some(Ok(_)) => "ok",
                    Some(Err(_)) => "NO",
                };
                write!(f, "{mark:>4}")?;
            }
            writeln!(f)?;
        }
        Ok(())
    }
}
