//! Numbers out of the tables of `/proc` (`proc(5)`).

/// The number behind a name at the beginning of a line; 0 where there is no such line.
pub(crate) fn member(text: &str, name: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
    line.split_whitespace().next().and_then(|number| number.parse().ok()).unwrap_or_default()
}

/// A count as a number to reckon with; those beyond 32 bits are of no use here.
pub(crate) fn to_float(count: u64) -> f64 {
    u32::try_from(count).map_or(f64::INFINITY, f64::from)
}
