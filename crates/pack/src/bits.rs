//! The bitstream: runs of codes to little-endian words and back.
//!
//! Eight codes of `b` bits are exactly `b` bytes, whatever `b` is. So one step takes eight code bytes as a `u64`,
//! squeezes out the unused bits in three shift-and-mask moves, and stores `b` bytes; no width needs a case of its
//! own and no code is ever split by hand.

/// Words a run of `n` codes takes.
pub(crate) fn words(n: usize, bits: u8) -> usize {
    (n * usize::from(bits)).div_ceil(32)
}

/// Packs each row of `codes` `[rows, cols]` as one run: words `[rows, words(cols)]`, the rest of a row's last word
/// zero. Codes must be below `2^bits`.
pub(crate) fn pack_rows(codes: &[u8], cols: usize, bits: u8) -> Vec<u32> {
    let width = words(cols, bits);
    let rows = codes.len().checked_div(cols).unwrap_or(0);
    let mut out = vec![0u32; rows * width];
    if width == 0 {
        return out;
    }
    let mut run = vec![0u8; cols.div_ceil(8) * usize::from(bits) + 8];
    for (codes, words) in codes.chunks_exact(cols).zip(out.chunks_exact_mut(width)) {
        match bits {
            2 => pack_run::<2>(codes, &mut run),
            3 => pack_run::<3>(codes, &mut run),
            4 => pack_run::<4>(codes, &mut run),
            5 => pack_run::<5>(codes, &mut run),
            6 => pack_run::<6>(codes, &mut run),
            7 => pack_run::<7>(codes, &mut run),
            _ => pack_run::<8>(codes, &mut run),
        }
        for (word, bytes) in words.iter_mut().zip(run.as_chunks::<4>().0) {
            *word = u32::from_le_bytes(*bytes);
        }
    }
    out
}

/// The inverse of [`pack_rows`] for rows of `cols` codes.
pub(crate) fn unpack_rows(words: &[u32], cols: usize, bits: u8) -> Vec<u8> {
    let width = self::words(cols, bits);
    let mut codes = Vec::with_capacity(words.len().checked_div(width).unwrap_or(0) * cols);
    if width == 0 {
        return codes;
    }
    let mut run = vec![0u8; width * 4 + 8];
    let mut unpacked = vec![0u8; cols.next_multiple_of(8)];
    for words in words.chunks_exact(width) {
        for (bytes, word) in run.as_chunks_mut::<4>().0.iter_mut().zip(words) {
            *bytes = word.to_le_bytes();
        }
        match bits {
            2 => unpack_run::<2>(&run, &mut unpacked),
            3 => unpack_run::<3>(&run, &mut unpacked),
            4 => unpack_run::<4>(&run, &mut unpacked),
            5 => unpack_run::<5>(&run, &mut unpacked),
            6 => unpack_run::<6>(&run, &mut unpacked),
            7 => unpack_run::<7>(&run, &mut unpacked),
            _ => unpack_run::<8>(&run, &mut unpacked),
        }
        codes.extend_from_slice(&unpacked[..cols]);
    }
    codes
}

/// Puts eight codes in the order in which AWQ's words hold them, lowest bits first; twice is not once, see
/// [`from_awq_order`]. `codes` has a multiple of eight elements.
pub(crate) fn to_awq_order(codes: &mut [u8]) {
    reorder(codes, [0, 2, 4, 6, 1, 3, 5, 7]);
}

/// The inverse of [`to_awq_order`].
pub(crate) fn from_awq_order(codes: &mut [u8]) {
    reorder(codes, [0, 4, 1, 5, 2, 6, 3, 7]);
}

fn reorder(codes: &mut [u8], order: [usize; 8]) {
    for eight in codes.as_chunks_mut::<8>().0 {
        *eight = order.map(|from| eight[from]);
    }
}

/// `[rows, cols]` to `[cols, rows]`, in tiles that stay in the first cache.
pub(crate) fn transpose<T: Copy + Default>(values: &[T], rows: usize, cols: usize) -> Vec<T> {
    const TILE: usize = 16;
    let mut out = vec![T::default(); values.len()];
    for top in (0..rows).step_by(TILE) {
        for left in (0..cols).step_by(TILE) {
            for col in left..(left + TILE).min(cols) {
                for row in top..(top + TILE).min(rows) {
                    out[col * rows + row] = values[row * cols + col];
                }
            }
        }
    }
    out
}

/// Little-endian bytes of words.
pub(crate) fn to_bytes(words: &[u32]) -> Vec<u8> {
    let mut bytes = vec![0; words.len() * 4];
    for (bytes, word) in bytes.as_chunks_mut::<4>().0.iter_mut().zip(words) {
        *bytes = word.to_le_bytes();
    }
    bytes
}

/// Words from little-endian bytes; a length that is not a multiple of four loses its tail.
pub(crate) fn from_bytes(bytes: &[u8]) -> Vec<u32> {
    let (words, _) = bytes.as_chunks::<4>();
    words.iter().map(|&b| u32::from_le_bytes(b)).collect()
}

/// Low `width` bits of every `lane`-bit lane of a `u64`.
const fn lanes(width: u32, lane: u32) -> u64 {
    let one = if width == 64 {
        u64::MAX
    } else {
        (1 << width) - 1
    };
    let (mut mask, mut at) = (0, 0);
    while at < 64 {
        mask |= one << at;
        at += lane;
    }
    mask
}

/// `run` is at least eight bytes longer than the packed codes, so that every store may be a whole `u64`.
fn pack_run<const B: u32>(codes: &[u8], run: &mut [u8]) {
    let (eights, tail) = codes.as_chunks::<8>();
    let mut last = [0; 8];
    last[..tail.len()].copy_from_slice(tail);
    for (i, eight) in eights.iter().chain([&last]).enumerate() {
        let x = u64::from_le_bytes(*eight);
        let low = lanes(B, 16);
        let x = (x & low) | ((x >> (8 - B)) & (low << B));
        let low = lanes(2 * B, 32);
        let x = (x & low) | ((x >> (16 - 2 * B)) & (low << (2 * B)));
        let low = lanes(4 * B, 64);
        let x = (x & low) | ((x >> (32 - 4 * B)) & (low << (4 * B)));
        let at = i * B as usize;
        if let Some(slot) = run.get_mut(at..at + 8) {
            slot.copy_from_slice(&x.to_le_bytes());
        }
    }
}

/// `run` is at least eight bytes longer than the packed codes; `codes` has a multiple of eight elements.
fn unpack_run<const B: u32>(run: &[u8], codes: &mut [u8]) {
    for (i, eight) in codes.as_chunks_mut::<8>().0.iter_mut().enumerate() {
        let at = i * B as usize;
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&run[at..at + 8]);
        let x = u64::from_le_bytes(bytes);
        let low = lanes(4 * B, 64);
        let x = (x & low) | ((x & (low << (4 * B))) << (32 - 4 * B));
        let low = lanes(2 * B, 32);
        let x = (x & low) | ((x & (low << (2 * B))) << (16 - 2 * B));
        let low = lanes(B, 16);
        let x = (x & low) | ((x & (low << B)) << (8 - B));
        *eight = x.to_le_bytes();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The definition, bit by bit.
    fn naive(codes: &[u8], bits: u8) -> Vec<u32> {
        let mut out = vec![0u32; words(codes.len(), bits)];
        for (n, &code) in codes.iter().enumerate() {
            for bit in 0..usize::from(bits) {
                let at = n * usize::from(bits) + bit;
                out[at / 32] |= u32::from(code >> bit & 1) << (at % 32);
            }
        }
        out
    }

    #[test]
    fn three_bit_codes_cross_word_borders() {
        let mut codes = [0; 32];
        codes[10] = 0b101;
        codes[21] = 0b110;
        assert_eq!(pack_rows(&codes, 32, 3), [1 << 30, 1, 0b11]);
    }

    #[test]
    fn no_codes_make_no_words() {
        assert!(pack_rows(&[], 0, 4).is_empty());
        assert!(unpack_rows(&[], 0, 4).is_empty());
    }

    proptest! {
        #[test]
        fn packing_is_the_definition_and_unpacking_its_inverse(
            bits in 2u8..=8, rows in 1usize..4, cols in 1usize..100, seed in any::<u64>(),
        ) {
            let mut state = seed | 1;
            let codes: Vec<u8> = (0..rows * cols)
                .map(|_| {
                    state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                    (state >> 56) as u8 >> (8 - bits)
                })
                .collect();
            let packed = pack_rows(&codes, cols, bits);
            let wanted: Vec<u32> = codes.chunks(cols).flat_map(|row| naive(row, bits)).collect();
            prop_assert_eq!(&packed, &wanted);
            prop_assert_eq!(unpack_rows(&packed, cols, bits), codes);
        }

        #[test]
        fn transposing_twice_changes_nothing(rows in 1usize..40, cols in 1usize..40) {
            let values: Vec<u32> = (0..(rows * cols) as u32).collect();
            let turned = transpose(&values, rows, cols);
            prop_assert_eq!(turned[(cols - 1) * rows], values[cols - 1]);
            prop_assert_eq!(transpose(&turned, cols, rows), values);
        }
    }
}
