//! Repair of length-prefixed frames (`docs/formats/protocol.md`), for the targets at both ends of the wire.

const HEADER: usize = 10;

/// Gives most frames of an input lengths that fit into it, and streams out of `streams`.
///
/// One input in four stays as mutation left it.
pub fn repair(mut input: &mut [u8], streams: &[u32]) {
    if input.len().is_multiple_of(4) {
        return;
    }
    while input.len() >= HEADER {
        let (header, rest) = input.split_at_mut(HEADER);
        let body =
            (usize::from(header[0]) | usize::from(header[1]) << 8).saturating_sub(HEADER - 4);
        let body = body.min(rest.len());
        let len = u32::try_from(body + HEADER - 4).unwrap_or(0);
        header[..4].copy_from_slice(&len.to_le_bytes());
        let stream = streams[usize::from(header[4] ^ header[6]) % streams.len()];
        if !streams.contains(&u32::from_le_bytes([header[4], header[5], header[6], header[7]])) {
            header[4..8].copy_from_slice(&stream.to_le_bytes());
        }
        input = &mut rest[body..];
    }
}
