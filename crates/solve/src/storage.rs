//! Rounding scales to the type they will be stored in.

use crate::ScaleDtype;

/// What rounding to a storage type means: bits dropped from an f32's 24, and the magnitudes kept.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Storage {
    dropped_bits: u32,
    /// Smallest magnitude stored.
    pub(crate) least: f32,
    most: f32,
}

/// The smallest normal f16, 2⁻¹⁴.
const LEAST_F16: f32 = 6.103_515_6e-5;

impl Storage {
    pub(crate) fn new(dtype: ScaleDtype) -> Self {
        let (dropped_bits, least, most) = match dtype {
            ScaleDtype::F32 => (0, f32::MIN_POSITIVE, f32::MAX),
            ScaleDtype::F16 => (13, LEAST_F16, 65504.0),
            // the largest bf16 is 0x7f7f0000
            ScaleDtype::Bf16 => (16, f32::MIN_POSITIVE, f32::from_bits(0x7f7f_0000)),
            // the largest number of 8 significant bits below f16's 65504
            ScaleDtype::Portable => (16, LEAST_F16, 65280.0),
        };
        Self {
            dropped_bits,
            least,
            most,
        }
    }

    /// Nearest storable number, ties to even, clamped in magnitude; the sign of zero decides where zero goes.
    #[inline(always)]
    pub(crate) fn round(self, scale: f32) -> f32 {
        let magnitude = scale.abs().max(self.least).min(self.most).to_bits();
        let round_up = if self.dropped_bits == 0 {
            0
        } else {
            (1 << (self.dropped_bits - 1)) - 1 + ((magnitude >> self.dropped_bits) & 1)
        };
        let kept = (magnitude + round_up) & !((1u32 << self.dropped_bits) - 1);
        f32::from_bits(kept).min(self.most).copysign(scale)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn f16_scales_round_to_even_at_eleven_bits() {
        let storage = Storage::new(ScaleDtype::F16);
        assert_eq!(storage.round(1.0 + 1.0 / 2048.0), 1.0);
        assert_eq!(storage.round(1.0 + 3.0 / 2048.0), 1.0 + 2.0 / 1024.0);
        assert_eq!(storage.round(-1.000_6), -(1.0 + 1.0 / 1024.0));
        assert_eq!(storage.round(1e9), 65504.0);
        assert_eq!(storage.round(0.0), LEAST_F16);
    }

    #[test]
    fn portable_scales_have_eight_bits_and_lie_in_the_normal_f16_range() {
        let storage = Storage::new(ScaleDtype::Portable);
        for x in [0.0123f32, -0.7, 3.3e4, 65500.0, 1e-9, -1e-9] {
            let s = storage.round(x);
            assert_eq!(s.to_bits() & 0xffff, 0);
            assert!((LEAST_F16..=65280.0).contains(&s.abs()) && s.signum() == x.signum());
        }
        assert_eq!(storage.round(1.0 + 1.0 / 256.0), 1.0);
        assert_eq!(storage.round(1.0 + 3.0 / 256.0), 1.0 + 4.0 / 256.0);
    }

    #[test]
    fn f32_scales_are_left_alone() {
        let storage = Storage::new(ScaleDtype::F32);
        for x in [0.1f32, -3.7e-30, 1e30] {
            assert_eq!(storage.round(x), x);
        }
    }
}
