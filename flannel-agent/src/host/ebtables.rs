//! Tables of the legacy ebtables with rules, as far as the kernel tells without making one.
//!
//! To ask for a table makes it, and then each frame on a bridge passes it. But its module is held by each network namespace
//! in which it has rules (net/bridge/netfilter/ebtables.c, `do_replace_finish`), and nothing else holds it.

use std::{collections::BTreeSet, fs, path::Path};

/// Where the kernel tells who holds a module.
const MODULES: &str = "/sys/module";
/// Each has a module `ebtable_NAME`.
const TABLES: [&str; 3] = ["broute", "filter", "nat"];

/// Those that have rules in any network namespace. A kernel that has them built in tells of none.
pub(crate) fn tables_with_rules() -> BTreeSet<&'static str> {
    held(Path::new(MODULES))
}

fn held(modules: &Path) -> BTreeSet<&'static str> {
    let is_held = |table: &&str| {
        let holders = fs::read_to_string(modules.join(format!("ebtable_{table}/refcnt")));
        holders.is_ok_and(|holders| holders.trim().parse::<u32>().is_ok_and(|holders| holders > 0))
    };
    TABLES.into_iter().filter(is_held).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_has_rules_where_its_module_is_held() {
        let modules = tempfile::tempdir().unwrap();
        assert!(held(modules.path()).is_empty());
        for (table, holders) in [("filter", "2\n"), ("nat", "0\n"), ("broute", "")] {
            let module = modules.path().join(format!("ebtable_{table}"));
            fs::create_dir(&module).unwrap();
            fs::write(module.join("refcnt"), holders).unwrap();
        }
        assert_eq!(held(modules.path()), BTreeSet::from(["filter"]));
    }
}
