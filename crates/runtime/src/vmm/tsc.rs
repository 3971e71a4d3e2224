//! The rate of the host's time stamp counter, which QEMU's translator gives to its guests as it is.
//!
//! A guest there has nothing good to measure the counter against, and without it no clock but its
//! own tick: 250 wake-ups a second from an idle guest, and timers that are 4 ms late. So the host
//! measures, once for each of its boots, and the guest is told.

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

use super::probe::{boot_id, write_whole};
use crate::sys;

/// Time the counter is watched for. A microsecond at either end is then 10 ppm, which is what a
/// quartz is wrong by.
const WATCHED: Duration = Duration::from_millis(100);

/// Tries for a reading of both clocks that nothing came between.
const TRIES: usize = 16;

/// Where Linux lists the clocks it would use: the counter is missing where it has found it unsteady.
const CLOCKS: &str = "/sys/devices/system/clocksource/clocksource0/available_clocksource";

#[derive(Serialize, Deserialize)]
struct Kept {
    boot_id: String,
    khz: u32,
}

/// The rate in kHz, measured, or read from `cache` when it was since this boot. Blocks for 100 ms
/// the first time. `None` where the counter is no clock.
pub fn host_tsc_khz(cache: &Path) -> Option<u32> {
    let clocks = fs::read_to_string(CLOCKS).unwrap_or_default();
    if !clocks.split_whitespace().any(|clock| clock == "tsc") {
        return None;
    }
    let boot_id = boot_id();
    if let Some(khz) = kept(cache, &boot_id) {
        return Some(khz);
    }
    let khz = measure()?;
    // Who starts at the same time measures another rate, a little off. Machines of one template must be
    // told the same: the first one counts.
    if let Some(khz) = kept(cache, &boot_id) {
        return Some(khz);
    }
    if let Err(error) = write_whole(cache, &Kept { boot_id, khz }) {
        // The next command measures again.
        tracing::debug!(path = %cache.display(), %error, "could not keep the counter's rate");
    }
    Some(khz)
}

fn kept(cache: &Path, boot_id: &str) -> Option<u32> {
    let kept: Kept = serde_json::from_slice(&fs::read(cache).ok()?).ok()?;
    (kept.boot_id == boot_id).then_some(kept.khz)
}

fn measure() -> Option<u32> {
    let (begun, first) = reading()?;
    while begun.elapsed() < WATCHED {
        std::hint::spin_loop();
    }
    let (ended, last) = reading()?;
    let cycles = u128::from(last.checked_sub(first)?);
    let khz = cycles * 1_000_000 / ended.duration_since(begun).as_nanos();
    u32::try_from(khz).ok().filter(|khz| *khz > 0)
}

/// Both clocks at one moment: of several tries the one that took least.
fn reading() -> Option<(Instant, u64)> {
    let readings = (0..TRIES).map(|_| {
        let before = Instant::now();
        let cycles = sys::time_stamp()?;
        Some((before.elapsed(), before, cycles))
    });
    let (_, at, cycles) = readings.collect::<Option<Vec<_>>>()?.into_iter().min()?;
    Some((at, cycles))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rate_is_that_of_a_processor_and_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let cache = dir.path().join("tsc.json");
        let Some(khz) = host_tsc_khz(&cache) else { return assert!(!cache.exists()) };
        assert!((100_000..10_000_000).contains(&khz), "{khz} kHz");
        assert_eq!(host_tsc_khz(&cache), Some(khz));
        let again = measure().unwrap();
        assert!(again.abs_diff(khz) < khz / 1000, "{khz} and {again} kHz");
    }
}
