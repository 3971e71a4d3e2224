//! Limits: how much one layer may make of itself, so that a small hostile download cannot fill a disk.

/// Bytes that a layer may unpack to whatever its size: a file of zeros packs a thousandfold and harms nobody.
const ALWAYS_ALLOWED_BYTES: u64 = 1 << 30;

/// How large a layer may become. The defaults are far above every real image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Limits {
    /// Bytes of one layer, unpacked, holes included. Default: 512 GiB.
    pub layer_bytes: u64,
    /// Times its own size that a layer may unpack to, once it has unpacked to more than 1 GiB. Default: 256, where
    /// real layers unpack to two to ten times their size and gzip can say a thousand times.
    pub layer_ratio: u32,
    /// Entries of one layer. Default: 8 Mi.
    pub layer_entries: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { layer_bytes: 512 << 30, layer_ratio: 256, layer_entries: 8 << 20 }
    }
}

impl Limits {
    /// The same limits with another one for the bytes of a layer.
    #[must_use]
    pub fn with_layer_bytes(mut self, layer_bytes: u64) -> Self {
        self.layer_bytes = layer_bytes;
        self
    }

    /// The same limits with another one for a layer's expansion.
    #[must_use]
    pub fn with_layer_ratio(mut self, layer_ratio: u32) -> Self {
        self.layer_ratio = layer_ratio;
        self
    }

    /// The same limits with another one for the entries of a layer.
    #[must_use]
    pub fn with_layer_entries(mut self, layer_entries: u64) -> Self {
        self.layer_entries = layer_entries;
        self
    }

    /// Whether `packed` bytes may have become `unpacked` ones.
    pub(crate) fn allow_expansion(&self, packed: u64, unpacked: u64) -> bool {
        unpacked <= ALWAYS_ALLOWED_BYTES
            || unpacked <= packed.saturating_mul(self.layer_ratio.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expansion_is_judged_beyond_a_gibibyte() {
        let limits = Limits::default();
        for (packed, unpacked, allowed) in [
            (1, 1 << 30, true),
            (1, (1 << 30) + 1, false),
            (1 << 30, 256 << 30, true),
            (1 << 30, (256 << 30) + 1, false),
            (u64::MAX, u64::MAX, true),
        ] {
            assert_eq!(limits.allow_expansion(packed, unpacked), allowed, "{packed}: {unpacked}");
        }
    }
}
