//! The one product everything here is made of, on rows that lie side by side in SIMD registers.
//!
//! A strip of [`LANES`] rows is stored column by column, so that a column is one [`Lane`] and no operation crosses
//! rows. Matrices `K x K` are cut into panels of [`PANEL`] columns. Every path, AVX-512, AVX2 or portable, performs
//! the same fused multiply-adds per row in the same order, so results do not depend on the processor.

/// Rows a strip.
pub(crate) const LANES: usize = 32;
/// Columns a panel.
pub(crate) const PANEL: usize = 8;

/// One column of a strip: a number for each of its rows.
#[derive(Clone, Copy, Debug, PartialEq)]
#[repr(C, align(64))]
pub(crate) struct Lane(pub(crate) [f32; LANES]);

impl Lane {
    pub(crate) const ZERO: Self = Self([0.0; LANES]);
}

/// For each lane the one whose place it takes; both of the same sixteen.
pub(crate) type Map = [u32; LANES];

/// What the processor offers, widest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg(target_arch = "x86_64")]
pub(crate) enum Level {
    Avx512,
    Avx2,
    Portable,
}

/// The widest instructions at hand (the standard library caches the answer).
#[cfg(target_arch = "x86_64")]
#[inline]
pub(crate) fn level() -> Level {
    let avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
    if avx2
        && is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl")
    {
        Level::Avx512
    } else if avx2 {
        Level::Avx2
    } else {
        Level::Portable
    }
}

/// Compiles a function once per instruction set and picks at run time. The body uses `mul_add` where it wants
/// fusing; nothing else is ever contracted, so all versions agree to the bit.
macro_rules! multiversion {
    ($(#[$meta:meta])* $vis:vis fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? $body:block) => {
        $(#[$meta])*
        $vis fn $name($($arg: $ty),*) $(-> $ret)? {
            #[inline(always)]
            #[expect(clippy::too_many_arguments, reason = "hot loops take plain arguments")]
            #[allow(unfulfilled_lint_expectations, reason = "most have few")]
            fn body($($arg: $ty),*) $(-> $ret)? $body
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512dq,avx512vl,avx2,fma")]
                #[allow(clippy::too_many_arguments, reason = "as above")]
                fn avx512($($arg: $ty),*) $(-> $ret)? {
                    body($($arg),*)
                }
                #[target_feature(enable = "avx2,fma")]
                #[allow(clippy::too_many_arguments, reason = "as above")]
                fn avx2($($arg: $ty),*) $(-> $ret)? {
                    body($($arg),*)
                }
                match $crate::kernel::level() {
                    // SAFETY: the level was detected on this processor.
                    $crate::kernel::Level::Avx512 => unsafe { avx512($($arg),*) },
                    // SAFETY: as above.
                    $crate::kernel::Level::Avx2 => unsafe { avx2($($arg),*) },
                    $crate::kernel::Level::Portable => body($($arg),*),
                }
            }
            #[cfg(not(target_arch = "x86_64"))]
            body($($arg),*)
        }
    };
}
pub(crate) use multiversion;

/// `acc[c] += Σ_i e[i] * panel[i][c]`, rows `i` in order, every step fused.
#[inline]
pub(crate) fn accumulate(acc: &mut [Lane; PANEL], e: &[Lane], panel: &[[f32; PANEL]]) {
    #[cfg(target_arch = "x86_64")]
    match level() {
        // SAFETY: the level was detected on this processor.
        Level::Avx512 => return unsafe { accumulate_avx512(acc, e, panel) },
        // SAFETY: as above.
        Level::Avx2 => return unsafe { accumulate_avx2(acc, e, panel) },
        Level::Portable => {}
    }
    accumulate_portable(acc, e, panel);
}

/// What the columns of a panel aim at when all before it are coded: `w_k + Σ_i e_i N_ik`, `rows` being those of `N`.
/// `places` are the columns' positions and groups.
#[inline(always)]
pub(crate) fn panel_targets(
    w: &[Lane],
    places: &[(usize, usize)],
    errors: &[Lane],
    rows: &[[f32; PANEL]],
) -> [Lane; PANEL] {
    let mut targets = [Lane::ZERO; PANEL];
    for (target, &(position, _)) in targets.iter_mut().zip(places) {
        *target = w[position];
    }
    accumulate(&mut targets, errors, rows);
    targets
}

/// Adds the error of a panel's column `c` to what the columns behind it aim at; `row` is the column's of `N`.
#[inline(always)]
pub(crate) fn pull_error(targets: &mut [Lane; PANEL], c: usize, error: &Lane, row: &[f32; PANEL]) {
    for (target, &factor) in targets.iter_mut().zip(row).skip(c + 1) {
        for l in 0..LANES {
            target.0[l] = error.0[l].mul_add(factor, target.0[l]);
        }
    }
}

/// Every lane takes the number of the one that `map` names.
#[inline]
pub(crate) fn permute(lanes: &mut [Lane], map: &Map) {
    #[cfg(target_arch = "x86_64")]
    match level() {
        // SAFETY: the level was detected on this processor.
        Level::Avx512 => return unsafe { permute_avx512(lanes, map) },
        // SAFETY: as above.
        Level::Avx2 => return unsafe { permute_avx2(lanes, map) },
        Level::Portable => {}
    }
    permute_portable(lanes, map);
}

fn permute_portable(lanes: &mut [Lane], map: &Map) {
    for lane in lanes {
        let from = *lane;
        for (to, &l) in lane.0.iter_mut().zip(map) {
            *to = from.0[l as usize];
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn permute_avx512(lanes: &mut [Lane], map: &Map) {
    use std::arch::x86_64::{
        _mm512_loadu_ps, _mm512_loadu_si512, _mm512_permutexvar_ps, _mm512_storeu_ps,
    };
    for half in [0, 16] {
        // SAFETY: a Lane is 32 floats and a Map 32 numbers, read and written as two halves of 16; the instruction takes
        // an index modulo 16.
        unsafe {
            let index = _mm512_loadu_si512(map.as_ptr().add(half).cast());
            for lane in &mut *lanes {
                let at = lane.0.as_mut_ptr().add(half);
                _mm512_storeu_ps(at, _mm512_permutexvar_ps(index, _mm512_loadu_ps(at)));
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn permute_avx2(lanes: &mut [Lane], map: &Map) {
    use std::arch::x86_64::{
        _mm256_blendv_ps, _mm256_castsi256_ps, _mm256_loadu_ps, _mm256_loadu_si256,
        _mm256_permutevar8x32_ps, _mm256_slli_epi32, _mm256_storeu_ps,
    };
    for half in [0, 16] {
        // SAFETY: as in the wider form, in quarters of 8; the instruction takes an index modulo 8, and the index's
        // fourth bit, moved to where a blend looks, says which quarter of the half is meant.
        unsafe {
            let low = _mm256_loadu_si256(map.as_ptr().add(half).cast());
            let high = _mm256_loadu_si256(map.as_ptr().add(half + 8).cast());
            for lane in &mut *lanes {
                let at = lane.0.as_mut_ptr().add(half);
                let from = (_mm256_loadu_ps(at), _mm256_loadu_ps(at.add(8)));
                for (quarter, index) in [(0, low), (8, high)] {
                    let found = _mm256_blendv_ps(
                        _mm256_permutevar8x32_ps(from.0, index),
                        _mm256_permutevar8x32_ps(from.1, index),
                        _mm256_castsi256_ps(_mm256_slli_epi32::<28>(index)),
                    );
                    _mm256_storeu_ps(at.add(quarter), found);
                }
            }
        }
    }
}

fn accumulate_portable(acc: &mut [Lane; PANEL], e: &[Lane], panel: &[[f32; PANEL]]) {
    for (e, row) in e.iter().zip(panel) {
        for (acc, &factor) in acc.iter_mut().zip(row) {
            for (acc, &e) in acc.0.iter_mut().zip(&e.0) {
                *acc = e.mul_add(factor, *acc);
            }
        }
    }
}

/// 16 accumulators of 16 rows: two loads and eight broadcasts feed sixteen multiply-adds.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn accumulate_avx512(acc: &mut [Lane; PANEL], e: &[Lane], panel: &[[f32; PANEL]]) {
    use std::arch::x86_64::{_mm512_fmadd_ps, _mm512_loadu_ps, _mm512_set1_ps, _mm512_storeu_ps};
    // SAFETY: a Lane is 32 floats, read and written as two halves of 16.
    unsafe {
        let mut low = [_mm512_set1_ps(0.0); PANEL];
        let mut high = low;
        for c in 0..PANEL {
            low[c] = _mm512_loadu_ps(acc[c].0.as_ptr());
            high[c] = _mm512_loadu_ps(acc[c].0.as_ptr().add(16));
        }
        for (e, row) in e.iter().zip(panel) {
            let (e_low, e_high) = (
                _mm512_loadu_ps(e.0.as_ptr()),
                _mm512_loadu_ps(e.0.as_ptr().add(16)),
            );
            for c in 0..PANEL {
                let factor = _mm512_set1_ps(row[c]);
                low[c] = _mm512_fmadd_ps(e_low, factor, low[c]);
                high[c] = _mm512_fmadd_ps(e_high, factor, high[c]);
            }
        }
        for c in 0..PANEL {
            _mm512_storeu_ps(acc[c].0.as_mut_ptr(), low[c]);
            _mm512_storeu_ps(acc[c].0.as_mut_ptr().add(16), high[c]);
        }
    }
}

/// Quarter strips of 8 rows: eight accumulators and an operand fit the sixteen registers.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn accumulate_avx2(acc: &mut [Lane; PANEL], e: &[Lane], panel: &[[f32; PANEL]]) {
    use std::arch::x86_64::{_mm256_fmadd_ps, _mm256_loadu_ps, _mm256_set1_ps, _mm256_storeu_ps};
    for start in (0..LANES).step_by(8) {
        // SAFETY: start + 8 <= LANES floats of each Lane.
        unsafe {
            let mut sums = [_mm256_set1_ps(0.0); PANEL];
            for c in 0..PANEL {
                sums[c] = _mm256_loadu_ps(acc[c].0.as_ptr().add(start));
            }
            for (e, row) in e.iter().zip(panel) {
                let e = _mm256_loadu_ps(e.0.as_ptr().add(start));
                for c in 0..PANEL {
                    sums[c] = _mm256_fmadd_ps(e, _mm256_set1_ps(row[c]), sums[c]);
                }
            }
            for c in 0..PANEL {
                _mm256_storeu_ps(acc[c].0.as_mut_ptr().add(start), sums[c]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_instruction_set_gives_the_same_bits() {
        let mut seed = 1u32;
        let mut next = || {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (seed >> 8) as f32 / (1 << 23) as f32 - 1.0
        };
        let e: Vec<Lane> = (0..77)
            .map(|_| Lane(std::array::from_fn(|_| next())))
            .collect();
        let panel: Vec<[f32; PANEL]> = (0..77).map(|_| std::array::from_fn(|_| next())).collect();
        let start: [Lane; PANEL] = std::array::from_fn(|_| Lane(std::array::from_fn(|_| next())));
        let mut portable = start;
        accumulate_portable(&mut portable, &e, &panel);
        let mut chosen = start;
        accumulate(&mut chosen, &e, &panel);
        assert_eq!(portable, chosen);
        #[cfg(target_arch = "x86_64")]
        if level() != Level::Portable {
            let mut avx2 = start;
            // SAFETY: detected just above.
            unsafe { accumulate_avx2(&mut avx2, &e, &panel) };
            assert_eq!(portable, avx2);
        }
        for beam in [2, 4, 8, 16] {
            let map: Map =
                std::array::from_fn(|l| ((l / beam * beam) + (7 * l + l / 3) % beam) as u32);
            let permuted = |way: fn(&mut [Lane], &Map)| {
                let mut lanes = e.clone();
                way(&mut lanes, &map);
                lanes
            };
            let portable = permuted(permute_portable);
            for (from, to) in e.iter().zip(&portable) {
                assert!((0..LANES).all(|l| to.0[l] == from.0[map[l] as usize]));
            }
            assert_eq!(portable, permuted(permute));
            #[cfg(target_arch = "x86_64")]
            if level() != Level::Portable {
                // SAFETY: detected just above.
                let avx2 = permuted(|lanes, map| unsafe { permute_avx2(lanes, map) });
                assert_eq!(portable, avx2);
            }
        }
        let naive: f64 = (0..77)
            .map(|i| f64::from(e[i].0[5]) * f64::from(panel[i][3]))
            .sum::<f64>()
            + f64::from(start[3].0[5]);
        assert!((f64::from(portable[3].0[5]) - naive).abs() < 1e-5);
    }
}
