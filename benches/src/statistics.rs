//! Medians and percentiles.

/// The value below or at which a share of the values lies. `values` must not be empty.
pub(crate) fn percentile(values: &[f64], share: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted[rank.clamp(1, sorted.len()) - 1]
}

pub(crate) fn median(values: &[f64]) -> f64 {
    percentile(values, 0.5)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_values_of_the_sample() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[1.0, 2.0]), 1.0);
        assert_eq!(percentile(&[5.0], 0.999), 5.0);
        let hundred: Vec<_> = (1..=100).map(f64::from).collect();
        assert_eq!([percentile(&hundred, 0.99), percentile(&hundred, 0.0)], [99.0, 1.0]);
    }
}
