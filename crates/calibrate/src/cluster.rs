use rayon::prelude::*;

/// Rounds of assignment and re-centring; assignments rarely move after the first few.
const ROUNDS: usize = 12;

/// Groups unit vectors of equal length by direction into at most `wanted` groups: spherical k-means (Dhillon and
/// Modha, 2001) from far-apart first centres. Every index comes once, groups are ascending and none is empty.
pub(crate) fn cluster(profiles: &[Vec<f32>], wanted: usize) -> Vec<Vec<usize>> {
    if wanted <= 1 || profiles.len() <= wanted {
        return vec![(0..profiles.len()).collect()];
    }
    let mut centres = first_centres(profiles, wanted);
    let mut assigned = vec![usize::MAX; profiles.len()];
    for _ in 0..ROUNDS {
        let next: Vec<usize> = profiles
            .par_iter()
            .map(|profile| {
                let mut best = (f32::NEG_INFINITY, 0);
                for (index, centre) in centres.iter().enumerate() {
                    let cosine = dot(profile, centre);
                    if cosine > best.0 {
                        best = (cosine, index);
                    }
                }
                best.1
            })
            .collect();
        if next == assigned {
            break;
        }
        assigned = next;
        for (index, centre) in centres.iter_mut().enumerate() {
            let mut sum = vec![0.0; centre.len()];
            for (profile, _) in profiles.iter().zip(&assigned).filter(|(_, a)| **a == index) {
                sum.iter_mut().zip(profile).for_each(|(s, x)| *s += x);
            }
            let norm = dot(&sum, &sum).sqrt();
            if norm > 0.0 {
                sum.iter_mut().for_each(|s| *s /= norm);
                *centre = sum;
            }
        }
    }
    let mut groups = vec![Vec::new(); centres.len()];
    for (row, group) in assigned.into_iter().enumerate() {
        groups[group].push(row);
    }
    groups.retain(|g| !g.is_empty());
    groups
}

/// The first vector, then always the one farthest in direction from those taken.
fn first_centres(profiles: &[Vec<f32>], wanted: usize) -> Vec<Vec<f32>> {
    let mut centres = vec![profiles[0].clone()];
    let mut nearest = vec![f32::NEG_INFINITY; profiles.len()];
    while centres.len() < wanted {
        let last = &centres[centres.len() - 1];
        nearest
            .par_iter_mut()
            .zip(profiles)
            .for_each(|(n, p)| *n = n.max(dot(p, last)));
        let farthest = nearest
            .iter()
            .enumerate()
            .min_by(|a, b| a.1.total_cmp(b.1))
            .map_or(0, |(index, _)| index);
        centres.push(profiles[farthest].clone());
    }
    centres
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0.0f32; 16];
    let (chunks, rest) = a.as_chunks::<16>();
    let (other, other_rest) = b.as_chunks::<16>();
    for (x, y) in chunks.iter().zip(other) {
        for lane in 0..16 {
            lanes[lane] += x[lane] * y[lane];
        }
    }
    let tail: f32 = rest.iter().zip(other_rest).map(|(x, y)| x * y).sum();
    lanes.iter().sum::<f32>() + tail
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directions_that_lie_together_come_together() {
        let profiles: Vec<Vec<f32>> = (0..30)
            .map(|i| {
                let mut v = vec![0.05; 20];
                v[(i % 3) * 5] = 1.0;
                let norm = dot(&v, &v).sqrt();
                v.iter().map(|x| x / norm).collect()
            })
            .collect();
        let groups = cluster(&profiles, 3);
        assert_eq!(groups.len(), 3);
        for group in groups {
            assert_eq!(group.len(), 10);
            assert!(group.iter().all(|i| i % 3 == group[0] % 3));
        }
    }

    #[test]
    fn every_row_is_in_one_group_even_when_some_are_zero() {
        let mut profiles = vec![vec![0.0; 17]; 9];
        profiles[4][3] = 1.0;
        let mut all: Vec<usize> = cluster(&profiles, 4).into_iter().flatten().collect();
        all.sort_unstable();
        assert_eq!(all, (0..9).collect::<Vec<_>>());
        assert_eq!(cluster(&profiles, 1).len(), 1);
    }
}
