//! Figures taken several times.

use serde::{Deserialize, Serialize};

/// What was measured, in the order it was taken.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Samples(Vec<f64>);

impl Samples {
    /// Adds one.
    pub fn push(&mut self, value: f64) {
        self.0.push(value);
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The value that `share` (0 to 1) of the samples do not exceed, between samples by straight lines. Not a number
    /// where there are none.
    pub fn quantile(&self, share: f64) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let Some(last) = sorted.len().checked_sub(1) else { return f64::NAN };
        let place = share.clamp(0.0, 1.0) * last as f64;
        let (low, high) = (sorted[place.floor() as usize], sorted[place.ceil() as usize]);
        low + (high - low) * place.fract()
    }

    /// The middle one.
    pub fn median(&self) -> f64 {
        self.quantile(0.5)
    }

    /// Where the middle half of the samples begins and ends: what one of them that met another program's burst does
    /// not widen.
    pub fn spread(&self) -> (f64, f64) {
        (self.quantile(0.25), self.quantile(0.75))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples(values: &[f64]) -> Samples {
        Samples(values.to_vec())
    }

    #[test]
    fn quantiles_lie_between_samples() {
        let close = |a: f64, b: f64| assert!((a - b).abs() < 1e-9, "{a} is not {b}");
        close(samples(&[9.0, 1.0, 2.0]).median(), 2.0);
        close(samples(&[4.0, 1.0, 2.0, 3.0]).median(), 2.5);
        let five = samples(&[5.0, 1.0, 2.0, 4.0, 3.0]);
        close(five.spread().0, 2.0);
        close(five.spread().1, 4.0);
        close(five.quantile(1.0), 5.0);
        assert!(samples(&[]).median().is_nan());
    }
}
