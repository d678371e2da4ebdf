//! The regions of Amazon's cloud.

/// The domain of a region's endpoints.
pub(super) fn domain(region: &str) -> &'static str {
    if region.starts_with("cn-") { "amazonaws.com.cn" } else { "amazonaws.com" }
}
