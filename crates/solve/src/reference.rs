//! The paper's own loop, kept for parity with tools that run it.
//!
//! Columns in order, in blocks of `block_size`: quantize a column, push `(w − ŵ) / U_kk` times row `k` of `U` onto the
//! block's remaining columns, and after the block onto all columns behind it. Semantics of the first implementation
//! are kept where they decide codes:
//! - a column with `H_kk = 0` is set to zero and its `H_kk` to 1;
//! - groups found on the way take their range from the weights *as they were when the block began*: errors of the same
//!   block are not yet in them when a group starts inside a block;
//! - with `static_groups`, ranges come from the untouched weights and columns may follow activation order.
//!
//! One thing differs: a scale is rounded to its storage type before it codes anything (`ScaleDtype::F32` gives the
//! paper's arithmetic). `U = M⁻¹` comes from one Cholesky of the reversed `H` and a triangular inverse, the same matrix
//! as the Cholesky factor of an explicit `H⁻¹`.

use crate::gptq::Problem;
use crate::grid::{group_grid, nearest};
use crate::kernel::{LANES, Lane, multiversion};
use crate::strip::Coded;

/// Solves one strip by the push loop on `u`, upper triangular, row-major, in solve order.
pub(crate) fn push(problem: &Problem<'_>, w: &[Lane], u: &[f32]) -> Coded {
    let (layout, order) = (&problem.layout, &problem.factor.order);
    let columns = order.len();
    let mut left: Vec<Lane> = problem
        .places
        .iter()
        .zip(order)
        .map(|(&(position, _), &column)| {
            if problem.factor.dead[column] {
                Lane::ZERO
            } else {
                w[position]
            }
        })
        .collect();
    let moving = !problem.options.static_groups;
    let mut coded = if moving {
        Coded::new(layout)
    } else {
        let mut live = w.to_vec();
        for (column, _) in problem.factor.dead.iter().enumerate().filter(|(_, d)| **d) {
            live[layout.position(column)] = Lane::ZERO;
        }
        problem.static_grid(&live)
    };
    for start in (0..columns).step_by(problem.options.block_size) {
        let end = (start + problem.options.block_size).min(columns);
        let mut block = left[start..end].to_vec();
        let mut errors = vec![Lane::ZERO; end - start];
        for k in start..end {
            let (position, g) = problem.places[k];
            if moving && k % layout.group == 0 {
                let group = &left[k..(k + layout.group).min(columns)];
                let pivots = &problem.factor.pivots[k..k + group.len()];
                (coded.scale[g], coded.zero[g]) = group_grid(group, pivots, &problem.spec);
            }
            let now = block[k - start];
            let pivot = u[k * columns + k];
            for l in 0..LANES {
                let (scale, zero) = (coded.scale[g].0[l], coded.zero[g].0[l]);
                let v = nearest(now.0[l], 1.0 / scale, -zero, problem.spec.max_code - zero);
                coded.v[position].0[l] = v;
                errors[k - start].0[l] = (now.0[l] - scale * v) / pivot;
            }
            spread(
                &mut block[k - start..],
                &errors[k - start],
                &u[k * columns + k..k * columns + end],
            );
        }
        for k in start..end {
            spread(
                &mut left[end..],
                &errors[k - start],
                &u[k * columns + end..(k + 1) * columns],
            );
        }
    }
    coded
}

multiversion! {
    /// `columns[j] -= error * row[j]`.
    fn spread(columns: &mut [Lane], error: &Lane, row: &[f32]) {
        for (column, &factor) in columns.iter_mut().zip(row) {
            for l in 0..LANES {
                column.0[l] = error.0[l].mul_add(-factor, column.0[l]);
            }
        }
    }
}
