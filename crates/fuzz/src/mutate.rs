//! Mutation: small and large changes to inputs that are known to lead somewhere.

/// Values that parsers stumble over.
const ODD_BYTES: [u8; 10] = [0, 0xff, 0x80, 0x7f, b'/', b'.', b'0', b'9', b' ', b'"'];

/// Largest input made.
const MAX_BYTES: usize = 256 << 10;

/// Numbers that look random, the same for the same seed (xorshift64*, Vigna 2014).
#[derive(Debug)]
pub(crate) struct Random {
    state: u64,
}

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self { state: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1 }
    }

    fn next(&mut self) -> u64 {
        self.state ^= self.state >> 12;
        self.state ^= self.state << 25;
        self.state ^= self.state >> 27;
        self.state.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `limit`, which is at least one.
    fn below(&mut self, limit: usize) -> usize {
        let limit = limit.max(1) as u64;
        usize::try_from(self.next() % limit).unwrap_or(0)
    }

    /// One of the pool, changed a few times.
    pub(crate) fn mutate(&mut self, pool: &[Vec<u8>]) -> Vec<u8> {
        let mut input = pool[self.below(pool.len())].clone();
        for _ in 0..=self.below(4) {
            self.change(&mut input, pool);
        }
        input.truncate(MAX_BYTES);
        input
    }

    fn change(&mut self, input: &mut Vec<u8>, pool: &[Vec<u8>]) {
        let at = self.below(input.len() + 1);
        let run = at..(at + 1 + self.below(64)).min(input.len());
        match self.below(8) {
            0 => {
                if let Some(byte) = input.get_mut(at) {
                    *byte ^= 1 << self.below(8);
                }
            }
            1 => {
                let odd = ODD_BYTES[self.below(ODD_BYTES.len())];
                input[run.start..run.end.max(run.start)].fill(odd);
            }
            2 => input.insert(at, ODD_BYTES[self.below(ODD_BYTES.len())]),
            3 => input.truncate(at),
            4 => drop(input.drain(run.start..run.end.max(run.start))),
            5 => {
                // Tar counts in blocks: whole ones again, or in another order.
                let block = at / 512 * 512..(at / 512 * 512 + 512).min(input.len());
                let copy = input[block.start.min(block.end)..block.end].to_vec();
                let place = self.below(input.len() / 512 + 1) * 512;
                input.splice(place..place, copy);
            }
            6 => {
                let other = &pool[self.below(pool.len())];
                let from = self.below(other.len() + 1);
                input.truncate(at);
                input.extend_from_slice(&other[from..]);
            }
            _ => {
                let digit = b'0' + u8::try_from(self.below(10)).unwrap_or(0);
                let digits = input.iter_mut().filter(|byte| byte.is_ascii_digit());
                let count = digits.count();
                let chosen = self.below(count);
                let mut digits = input.iter_mut().filter(|byte| byte.is_ascii_digit());
                if let Some(byte) = digits.nth(chosen) {
                    *byte = digit;
                }
            }
        }
    }
}
