use std::fs;

use super::TARGETS;

#[test]
fn each_kind_takes_its_seeds_and_what_a_fuzzer_has_kept() {
    for target in TARGETS {
        target.seeds.iter().for_each(|seed| (target.run)(seed.as_bytes()));
        let corpus = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fuzz/corpus/");
        let kept = fs::read_dir(format!("{corpus}{}", target.name)).unwrap();
        let kept: Vec<_> = kept.map(|entry| fs::read(entry.unwrap().path()).unwrap()).collect();
        assert!(!kept.is_empty(), "nothing is kept of {}", target.name);
        kept.iter().for_each(|input| (target.run)(input));
    }
}

#[test]
fn seeds_cut_anywhere_or_with_any_byte_wrong_are_taken() {
    for target in TARGETS {
        for seed in target.seeds.iter().map(|seed| seed.as_bytes()) {
            for at in 0..seed.len() {
                (target.run)(&seed[..at]);
                let mut bent = seed.to_vec();
                bent[at] ^= 1 << (at % 8);
                (target.run)(&bent);
            }
        }
    }
}
