//! What to do about an error of EC2's.

/// Codes of errors, by their beginning, and what an operator can do; the first that fits counts.
const KNOWN: [(&str, &str); 13] = [
    ("AuthFailure", "the credentials are not valid: check the instance's role or AWS_ACCESS_KEY_ID"),
    ("InvalidClientTokenId", "the access key does not exist any more: check AWS_ACCESS_KEY_ID"),
    ("SignatureDoesNotMatch", "AWS_SECRET_ACCESS_KEY does not belong to AWS_ACCESS_KEY_ID"),
    (
        "UnrecognizedClientException",
        "the credentials are not valid in this region: check AWS_ACCESS_KEY_ID and AWS_REGION",
    ),
    (
        "ExpiredToken",
        "the session of the credentials has ended: renew AWS_SESSION_TOKEN, or use the instance's role",
    ),
    (
        "RequestExpired",
        "this machine's clock differs from Amazon's: set it, as by NTP. Or the session of the credentials has ended: renew it",
    ),
    ("RequestTimeTooSkewed", "this machine's clock differs from Amazon's: set it, as by NTP"),
    ("OptInRequired", "enable this region for the account"),
    ("Blocked", "the account is blocked: ask AWS support"),
    (
        "RouteLimitExceeded",
        "the route table is full: raise the quota \"Routes per route table\" (50 at first), or use the vxlan backend",
    ),
    ("InvalidRouteTableID", "correct RouteTableID in the network config"),
    (
        "InvalidParameterValue",
        "the VPC does not take this route: is the cluster's network outside of the VPC's own ranges?",
    ),
    ("InvalidInstanceID", "EC2 does not know this instance: is AWS_ENDPOINT_URL or AWS_REGION another's?"),
];

/// What to do about `code`, of `action`.
pub(super) fn advice(action: &str, code: &str) -> String {
    if code == "UnauthorizedOperation" || code == "AccessDenied" {
        return format!("grant ec2:{action} to this instance's role, or to the user of AWS_ACCESS_KEY_ID");
    }
    let known = KNOWN.iter().find(|(start, _)| code.starts_with(start));
    known.map_or("it is tried again", |(_, advice)| advice).to_owned()
}

/// Whether the same request may do better in a moment.
pub(super) fn may_pass(code: &str) -> bool {
    code.contains("Throttl")
        || matches!(
            code,
            "RequestLimitExceeded"
                | "InternalError"
                | "InternalFailure"
                | "ServiceUnavailable"
                | "Unavailable"
                | "EC2ThrottledException"
                | "RequestTimeout"
        )
}

/// Whether other credentials may do better.
pub(super) fn of_session(code: &str) -> bool {
    matches!(
        code,
        "ExpiredToken" | "ExpiredTokenException" | "AuthFailure" | "RequestExpired" | "InvalidClientTokenId"
    )
}
