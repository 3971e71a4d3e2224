//! Times as the catalogue stores them: whole milliseconds since 1970, UTC.

use std::time::{Duration, SystemTime};

/// Milliseconds since 1970; a time before it is stored as 0.
pub(crate) fn to_ms(time: SystemTime) -> i64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// The time `ms` stands for; a negative number, which no version wrote, reads as 1970.
pub(crate) fn from_ms(ms: i64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_millis(u64::try_from(ms).unwrap_or_default())
}

pub(crate) fn now_ms() -> i64 {
    to_ms(SystemTime::now())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_survives_to_the_millisecond_and_is_clamped_outside_the_range() {
        for (ms, read_back) in [(0, 0), (1, 1), (1_790_000_000_123, 1_790_000_000_123), (-5, 0)] {
            assert_eq!(to_ms(from_ms(ms)), read_back, "{ms}");
        }
        let before_1970 = SystemTime::UNIX_EPOCH - Duration::from_secs(1);
        assert_eq!(to_ms(before_1970), 0);
    }
}
