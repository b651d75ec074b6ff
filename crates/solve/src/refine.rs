//! After the greedy solve: scales by least squares for fixed codes, codes by coordinate descent for fixed scales.
//!
//! Both need `G = Δ H` of the group at hand, so one sweep does both, group by group: pull `G` for the group's
//! columns, move its scale to the minimum of the row's loss, then each of its codes (QuantEase, arXiv 2309.01885,
//! section 3). A joint least squares over all scales of a row would need a second product as large as the sweep;
//! visiting groups in turn twice reaches the same place. Every accepted step lowers the row's damped loss by the
//! exact amount computed, so no sweep can raise it.

use crate::grid::{GridSpec, nearest};
use crate::kernel::{LANES, Lane, PANEL, accumulate, multiversion};
use crate::strip::{Coded, Layout, Panels};

/// Share of the curvature that holds a scale to where it was: codes and scale fit the same calibration text.
const RIDGE: f32 = 1e-3;

/// Up to `rounds` sweeps over all groups, fewer once nothing moves. `diagonal` is `H_kk` by position; `panels` of
/// `None` means that `H` is no more than that.
pub(crate) fn refine(
    w: &[Lane],
    coded: &mut Coded,
    layout: &Layout,
    spec: &GridSpec,
    (panels, diagonal): (Option<&Panels>, &[f32]),
    rounds: usize,
) {
    let mut error = coded.error(layout, w);
    for _ in 0..rounds {
        if !sweep(w, coded, &mut error, layout, spec, panels, diagonal) {
            break;
        }
    }
}

multiversion! {
    /// One sweep; true when a scale or code of any row moved.
    fn sweep(
        w: &[Lane],
        coded: &mut Coded,
        error: &mut [Lane],
        layout: &Layout,
        spec: &GridSpec,
        panels: Option<&Panels>,
        diagonal: &[f32],
    ) -> bool {
        let mut moved = false;
        let mut gradient = vec![Lane::ZERO; layout.stride];
        let mut product = vec![Lane::ZERO; layout.stride];
        let mut change = vec![Lane::ZERO; layout.stride];
        for g in 0..layout.groups {
            let group = layout.whole(g);
            // gradient: Δ H, product: v_g H, both at the group's own columns
            for start in group.clone().step_by(PANEL) {
                let at = start - group.start;
                let (mut dh, mut vh) = ([Lane::ZERO; PANEL], [Lane::ZERO; PANEL]);
                if let Some(panels) = panels {
                    let rows = panels.panel(start / PANEL);
                    accumulate(&mut dh, error, rows);
                    accumulate(&mut vh, &coded.v[group.clone()], &rows[group.clone()]);
                } else {
                    for c in 0..PANEL {
                        for l in 0..LANES {
                            dh[c].0[l] = error[start + c].0[l] * diagonal[start + c];
                            vh[c].0[l] = coded.v[start + c].0[l] * diagonal[start + c];
                        }
                    }
                }
                gradient[at..at + PANEL].copy_from_slice(&dh);
                product[at..at + PANEL].copy_from_slice(&vh);
            }
            moved |= move_scale(
                &w[group.clone()],
                &coded.v[group.clone()],
                &mut coded.scale[g],
                &mut error[group.clone()],
                &mut gradient,
                &product,
                spec,
            );
            let (scale, zero) = (coded.scale[g], coded.zero[g]);
            let mut inverse_scale = Lane::ZERO;
            for l in 0..LANES {
                inverse_scale.0[l] = 1.0 / scale.0[l];
            }
            for start in group.clone().step_by(PANEL) {
                let at = start - group.start;
                let mut dh = [Lane::ZERO; PANEL];
                dh.copy_from_slice(&gradient[at..at + PANEL]);
                let rows = panels.map(|panels| &panels.panel(start / PANEL)[group.clone()]);
                if let Some(rows) = rows {
                    accumulate(&mut dh, &change[..at], &rows[..at]);
                }
                for c in 0..PANEL {
                    let position = start + c;
                    change[at + c] = move_code(
                        &w[position],
                        &mut coded.v[position],
                        &mut error[position],
                        &dh[c],
                        diagonal[position],
                        (&scale, &inverse_scale),
                        &zero,
                        spec.max_code,
                        &mut moved,
                    );
                    if let Some(rows) = rows {
                        for next in c + 1..PANEL {
                            let h = rows[at + c][next];
                            for l in 0..LANES {
                                dh[next].0[l] = change[at + c].0[l].mul_add(h, dh[next].0[l]);
                            }
                        }
                    }
                }
            }
        }
        moved
    }
}

/// Moves the group's scale to the least loss for its codes, `s + v·G / v H v`, as stored, and brings error and
/// gradient along. Rows that would lose, or change sign, keep theirs.
#[inline(always)]
fn move_scale(
    w: &[Lane],
    v: &[Lane],
    scale: &mut Lane,
    error: &mut [Lane],
    gradient: &mut [Lane],
    product: &[Lane],
    spec: &GridSpec,
) -> bool {
    let (mut slope, mut curvature) = (Lane::ZERO, Lane::ZERO);
    for (v, (gradient, product)) in v.iter().zip(gradient.iter().zip(product)) {
        for l in 0..LANES {
            slope.0[l] = v.0[l].mul_add(gradient.0[l], slope.0[l]);
            curvature.0[l] = v.0[l].mul_add(product.0[l], curvature.0[l]);
        }
    }
    let mut step = Lane::ZERO;
    let mut moved = false;
    for l in 0..LANES {
        let (old, slope, curvature) = (scale.0[l], slope.0[l], curvature.0[l]);
        let wanted = spec
            .storage
            .round(old + slope / (curvature * (1.0 + RIDGE)));
        let by = wanted - old;
        // the loss falls by 2 by slope - by² curvature; a curvature of 0 makes `wanted` NaN, which compares false
        let better =
            curvature > 0.0 && by * (2.0 * slope - by * curvature) > 0.0 && wanted * old > 0.0;
        step.0[l] = if better { by } else { 0.0 };
        scale.0[l] = if better { wanted } else { old };
        moved |= better;
    }
    if moved {
        for (k, v) in v.iter().enumerate() {
            for l in 0..LANES {
                error[k].0[l] = v.0[l].mul_add(-scale.0[l], w[k].0[l]);
                gradient[k].0[l] = (-step.0[l]).mul_add(product[k].0[l], gradient[k].0[l]);
            }
        }
    }
    moved
}

/// Moves one column's codes to the level nearest to the minimum of the row's loss, `ŵ + G / H_kk`; returns by how
/// much its error changed.
#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "hot loop on plain arguments")]
fn move_code(
    w: &Lane,
    v: &mut Lane,
    error: &mut Lane,
    gradient: &Lane,
    diagonal: f32,
    (scale, inverse_scale): (&Lane, &Lane),
    zero: &Lane,
    max_code: f32,
    moved: &mut bool,
) -> Lane {
    let mut change = Lane::ZERO;
    if diagonal <= 0.0 {
        return change;
    }
    let inverse = 1.0 / diagonal;
    let mut any = 0.0f32;
    for l in 0..LANES {
        let (old, s) = (v.0[l], scale.0[l]);
        let target = gradient.0[l].mul_add(inverse, w.0[l] - error.0[l]);
        let new = nearest(target, inverse_scale.0[l], -zero.0[l], max_code - zero.0[l]);
        let new_error = new.mul_add(-s, w.0[l]);
        let d = new_error - error.0[l];
        let falls = new != old && d * diagonal.mul_add(d, 2.0 * gradient.0[l]) < 0.0;
        v.0[l] = if falls { new } else { old };
        error.0[l] = if falls { new_error } else { error.0[l] };
        change.0[l] = if falls { d } else { 0.0 };
        any += if falls { 1.0 } else { 0.0 };
    }
    *moved |= any > 0.0;
    change
}
