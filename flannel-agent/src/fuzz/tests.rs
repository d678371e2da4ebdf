use super::TARGETS;

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
