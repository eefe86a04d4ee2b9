//! Numbers from a seed: nonces that no other client uses, and jitter.

/// SplitMix64 (Steele, Lea, Flood 2014): enough for jitter.
#[derive(Clone, Debug)]
pub(crate) struct Random {
    state: u64,
    nonce: u128,
}

impl Random {
    pub(crate) fn new(seed: [u8; 16]) -> Self {
        let nonce = u128::from_le_bytes(seed);
        Random { state: (nonce >> 64) as u64 ^ nonce as u64, nonce }
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform enough in `0..bound`; 0 for a bound of 0.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        if bound == 0 { 0 } else { self.next() % bound }
    }

    /// A nonce that this session has not used. Keeps all 128 bits of the seed: two clients collide only if their seeds do.
    pub(crate) fn nonce(&mut self) -> [u8; 16] {
        let nonce = self.nonce.to_le_bytes();
        self.nonce = self.nonce.wrapping_add(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835);
        nonce
    }
}
