use std::borrow::Cow;
use std::ops::Range;

use burn::prelude::*;
use halfbyte_model::{is_host, values};
use halfbyte_quant::{ActivationStats, CrossStats};

use crate::accumulate::CrossSum;
use crate::{Accumulator, WalkError};

/// An activation of some windows where it was computed, a token a row.
pub(crate) enum Activation {
    Host(Vec<f32>),
    Device(Box<Tensor<2>>),
}

/// Some rows of one.
pub(crate) enum Rows<'a> {
    Host(&'a [f32]),
    Device(Box<Tensor<2>>),
}

impl Activation {
    /// Of `[windows, tokens, features]`.
    pub(crate) fn of(x: Tensor<3>) -> Result<Self, WalkError> {
        if is_host(&x.device()) {
            return Ok(Self::Host(values(x)?));
        }
        let [windows, tokens, features] = x.dims();
        let rows = x.reshape([windows * tokens, features]);
        Ok(Self::Device(Box::new(rows)))
    }

    /// Some of its `of` rows.
    pub(crate) fn rows(&self, some: Range<usize>, of: usize) -> Rows<'_> {
        match self {
            Self::Host(all) => {
                let width = all.len() / of;
                Rows::Host(&all[some.start * width..some.end * width])
            }
            Self::Device(all) => {
                let all: &Tensor<2> = all;
                Rows::Device(Box::new(all.clone().slice(some)))
            }
        }
    }

    /// Its numbers, row by row.
    pub(crate) fn values(&self) -> Result<Cow<'_, [f32]>, WalkError> {
        Ok(match self {
            Self::Host(all) => Cow::Borrowed(all),
            Self::Device(all) => Cow::Owned(values(Tensor::clone(all))?),
        })
    }
}

/// What is summed beside an input's own moments.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Beside {
    Nothing,
    /// How it goes with what the float path has, and, of this width, with what the residual stream lacks.
    Float {
        stream: Option<usize>,
    },
}

/// Moments of an input, summed where the activations are.
pub(crate) enum Moments {
    Host(Box<HostMoments>),
    Device(Box<DeviceMoments>),
}

pub(crate) struct HostMoments {
    own: Accumulator,
    cross: Option<CrossSum>,
    stream: Option<CrossSum>,
}

/// Sums on a device, in f32 as on the CPU.
pub(crate) struct DeviceMoments {
    /// `[features, features]`, of `x xᵀ`.
    own: Tensor<2>,
    abs: Tensor<1>,
    max_abs: Tensor<1>,
    cross: Option<Tensor<2>>,
    stream: Option<Tensor<2>>,
    n_tokens: u64,
    weight: f64,
}

impl Moments {
    pub(crate) fn new(features: usize, beside: Beside, device: &Device) -> Self {
        let (float, stream) = match beside {
            Beside::Nothing => (false, None),
            Beside::Float { stream } => (true, stream),
        };
        if is_host(device) {
            return Self::Host(Box::new(HostMoments {
                own: Accumulator::new(features),
                cross: float.then(|| CrossSum::new(features, features)),
                stream: stream.map(|width| CrossSum::new(width, features)),
            }));
        }
        let zeros = |rows: usize| Tensor::<2>::zeros([rows, features], device);
        Self::Device(Box::new(DeviceMoments {
            own: zeros(features),
            abs: Tensor::zeros([features], device),
            max_abs: Tensor::zeros([features], device),
            cross: float.then(|| zeros(features)),
            stream: stream.map(zeros),
            n_tokens: 0,
            weight: 0.0,
        }))
    }

    pub(crate) fn n_tokens(&self) -> u64 {
        match self {
            Self::Host(sums) => sums.own.n_tokens(),
            Self::Device(sums) => sums.n_tokens,
        }
    }

    /// Adds tokens of every path, and the residual streams' if there are, with weights if there are. Gives the first row
    /// that is not finite, if there is one; the sums are then spoilt.
    pub(crate) fn add(
        &mut self,
        rows: &[Rows<'_>],
        streams: &[Rows<'_>],
        weights: Option<&[f32]>,
    ) -> Result<Option<usize>, WalkError> {
        match self {
            Self::Host(sums) => Ok(sums.add(&on_host(rows), &on_host(streams), weights)),
            Self::Device(sums) => sums.add(&on_device(rows), &on_device(streams), weights),
        }
    }

    /// Adds what another has summed of the input itself; neither has sums beside it.
    pub(crate) fn join(&mut self, other: &Self) {
        match (self, other) {
            (Self::Host(sums), Self::Host(other)) => sums.own.join(&other.own),
            (Self::Device(sums), Self::Device(other)) => sums.join(other),
            _ => unreachable!("moments lie in one place"),
        }
    }

    /// The means, and the largest `|x|` a channel.
    pub(crate) fn finish(self) -> Result<(ActivationStats, Vec<f32>), WalkError> {
        match self {
            Self::Host(sums) => Ok(sums.finish()),
            Self::Device(sums) => sums.finish(),
        }
    }
}

fn on_host<'a>(rows: &[Rows<'a>]) -> Vec<&'a [f32]> {
    let host = |rows: &Rows<'a>| match rows {
        Rows::Host(rows) => *rows,
        Rows::Device(_) => unreachable!("moments and activations lie in one place"),
    };
    rows.iter().map(host).collect()
}

fn on_device(rows: &[Rows<'_>]) -> Vec<Tensor<2>> {
    let device = |rows: &Rows<'_>| match rows {
        Rows::Device(rows) => Tensor::clone(rows),
        Rows::Host(_) => unreachable!("moments and activations lie in one place"),
    };
    rows.iter().map(device).collect()
}

impl HostMoments {
    fn add(
        &mut self,
        rows: &[&[f32]],
        streams: &[&[f32]],
        weights: Option<&[f32]>,
    ) -> Option<usize> {
        let added = match weights {
            None => self.own.add(rows[0]),
            Some(weights) => self.own.add_weighted(rows[0], weights),
        };
        for (sum, pair) in [(&mut self.cross, rows), (&mut self.stream, streams)] {
            if let (Some(sum), [own, float]) = (sum, pair) {
                sum.add([float, own], rows[0], weights);
            }
        }
        added.err()
    }

    fn finish(self) -> (ActivationStats, Vec<f32>) {
        let max_abs = self.own.max_abs().to_vec();
        let mut stats = self.own.finish();
        let stream = self.stream.map(CrossSum::finish);
        stats.cross = self.cross.map(|cross| CrossStats {
            input: cross.finish(),
            stream,
        });
        (stats, max_abs)
    }
}

impl DeviceMoments {
    fn add(
        &mut self,
        rows: &[Tensor<2>],
        streams: &[Tensor<2>],
        weights: Option<&[f32]>,
    ) -> Result<Option<usize>, WalkError> {
        let x = rows[0].clone();
        let [tokens, features] = x.dims();
        let abs = x.clone().abs();
        let sum = abs.clone().sum_dim(0).reshape([features]);
        // one number is read back, not all of them
        if !values(sum.clone().sum())?[0].is_finite() {
            let all = values(x)?;
            let bad = all
                .chunks(features)
                .position(|row| row.iter().any(|x| !x.is_finite()));
            return Ok(Some(bad.unwrap_or(0)));
        }
        self.max_abs = (self.max_abs.clone()).max_pair(abs.max_dim(0).reshape([features]));
        self.abs = self.abs.clone() + sum;
        let weighted = |t: Tensor<2>| match weights {
            None => t,
            Some(weights) => {
                let column = TensorData::new(weights.to_vec(), [tokens, 1]);
                t * Tensor::<2>::from_data(column, &self.own.device())
            }
        };
        let right = weighted(x.clone());
        self.own = self.own.clone() + x.transpose().matmul(right.clone());
        for (sum, pair) in [(&mut self.cross, rows), (&mut self.stream, streams)] {
            if let (Some(sum), [own, float]) = (sum, pair) {
                let lacking = float.clone() - own.clone();
                *sum = sum.clone() + lacking.transpose().matmul(right.clone());
            }
        }
        self.n_tokens += tokens as u64;
        self.weight += match weights {
            Some(weights) => weights.iter().map(|w| f64::from(*w)).sum(),
            None => tokens as f64,
        };
        Ok(None)
    }

    fn join(&mut self, other: &Self) {
        self.own = self.own.clone() + other.own.clone();
        self.abs = self.abs.clone() + other.abs.clone();
        self.max_abs = (self.max_abs.clone()).max_pair(other.max_abs.clone());
        self.n_tokens += other.n_tokens;
        self.weight += other.weight;
    }

    fn finish(self) -> Result<(ActivationStats, Vec<f32>), WalkError> {
        let max_abs = values(self.max_abs)?;
        let features = max_abs.len();
        if self.n_tokens == 0 || self.weight <= 0.0 {
            return Ok((ActivationStats::identity(features), max_abs));
        }
        let scaled = |values: Vec<f32>, scale: f64| -> Vec<f32> {
            values
                .into_iter()
                .map(|x| (f64::from(x) * scale) as f32)
                .collect()
        };
        let per_weight = 1.0 / self.weight;
        let mean = |of: Tensor<2>| Ok::<_, WalkError>(scaled(values(of)?, per_weight));
        let mut hessian = mean(self.own)?;
        // a product's two triangles may differ in the last bit
        for row in 0..features {
            for column in 0..row {
                hessian[column * features + row] = hessian[row * features + column];
            }
        }
        let stream = self.stream.map(mean).transpose()?;
        let cross = match self.cross {
            Some(cross) => Some(CrossStats {
                input: mean(cross)?,
                stream,
            }),
            None => None,
        };
        let stats = ActivationStats {
            in_features: features,
            hessian,
            mean_abs: scaled(values(self.abs)?, 1.0 / self.n_tokens as f64),
            n_tokens: self.n_tokens,
            cross,
        };
        Ok((stats, max_abs))
    }
}

#[cfg(test)]
mod tests {
    use halfbyte_model::{DeviceChoice, open_device};

    use super::*;

    fn rows(n: usize, seed: usize) -> Vec<f32> {
        (0..n)
            .map(|i| ((i * (31 + 2 * seed) + i / 7) % 101) as f32 / 50.0 - 1.0)
            .collect()
    }

    /// Of so few bits that bf16 holds their differences too.
    fn coarse_rows(n: usize, seed: usize) -> Vec<f32> {
        let coarse = |x: f32| (32.0 * x).round() / 32.0;
        rows(n, seed).into_iter().map(coarse).collect()
    }

    #[test]
    fn a_device_sums_what_the_processor_does() {
        let device = match open_device(DeviceChoice::Vulkan) {
            Ok(device) => device,
            Err(error) => {
                halfbyte_testing::skip(halfbyte_testing::Lacking::Vulkan, error);
                return;
            }
        };
        let (tokens, features, hidden) = (37, 45, 12);
        // numbers that bf16 holds, and weights and roots of them that keep them so: the processor may round to it
        let [x, float] = [1, 2].map(|seed| coarse_rows(tokens * features, seed));
        let [h, h_float] = [3, 4].map(|seed| coarse_rows(tokens * hidden, seed));
        let weights: Vec<f32> = (0..tokens).map(|i| [0.0, 0.25, 1.0, 4.0][i % 4]).collect();
        let beside = Beside::Float {
            stream: Some(hidden),
        };
        for weights in [None, Some(&weights[..])] {
            let sums = |device: &Device| {
                let of = |values: &[f32]| {
                    let width = values.len() / tokens;
                    let data = TensorData::new(values.to_vec(), [1, tokens, width]);
                    Activation::of(Tensor::from_data(data, device)).unwrap()
                };
                let (seen, streams) = ([of(&x), of(&float)], [of(&h), of(&h_float)]);
                let mut moments = Moments::new(features, beside, device);
                for part in [0..20, 20..tokens] {
                    let weights = weights.map(|w| &w[part.clone()]);
                    let [seen, streams] = [&seen, &streams].map(|both| {
                        let [own, float] = both;
                        [
                            own.rows(part.clone(), tokens),
                            float.rows(part.clone(), tokens),
                        ]
                    });
                    let added = moments.add(&seen, &streams, weights);
                    assert_eq!(added.unwrap(), None);
                }
                moments.finish().unwrap()
            };
            let (host, most) = sums(&Device::flex());
            let (found, found_most) = sums(&device);
            assert_eq!((found_most, found.n_tokens), (most, host.n_tokens));
            let near = |found: &[f32], wanted: &[f32], what: &str| {
                assert_eq!(found.len(), wanted.len(), "{what}");
                for (found, wanted) in found.iter().zip(wanted) {
                    assert!((found - wanted).abs() < 1e-5, "{what}: {found} {wanted}");
                }
            };
            near(&found.hessian, &host.hessian, "hessian");
            near(&found.mean_abs, &host.mean_abs, "mean_abs");
            let (found, wanted) = (found.cross.unwrap(), host.cross.unwrap());
            near(&found.input, &wanted.input, "cross");
            near(&found.stream.unwrap(), &wanted.stream.unwrap(), "stream");
        }
    }

    #[test]
    fn sums_joined_are_those_of_all_tokens() {
        let devices = [DeviceChoice::Cpu, DeviceChoice::Vulkan].map(open_device);
        for device in devices.into_iter().flatten() {
            let (tokens, features) = (37, 21);
            let x = rows(tokens * features, 1);
            let weights: Vec<f32> = rows(tokens, 5).iter().map(|w| w + 1.0).collect();
            let data = TensorData::new(x, [1, tokens, features]);
            let x = Activation::of(Tensor::from_data(data, &device)).unwrap();
            let sums = |some: Range<usize>| {
                let mut moments = Moments::new(features, Beside::Nothing, &device);
                let weights = Some(&weights[some.clone()]);
                let added = moments.add(&[x.rows(some, tokens)], &[], weights);
                assert_eq!(added.unwrap(), None);
                moments
            };
            let (mut joined, whole) = (sums(0..20), sums(0..tokens));
            joined.join(&sums(20..tokens));
            let ((found, found_most), (whole, most)) =
                (joined.finish().unwrap(), whole.finish().unwrap());
            assert_eq!((found_most, found.n_tokens), (most, whole.n_tokens));
            let pairs = (found.hessian.iter().zip(&whole.hessian))
                .chain(found.mean_abs.iter().zip(&whole.mean_abs));
            for (found, wanted) in pairs {
                assert!((found - wanted).abs() < 1e-5, "{found} {wanted}");
            }
        }
    }

    #[test]
    fn a_row_that_is_not_finite_is_named_on_a_device_too() {
        let device = match open_device(DeviceChoice::Vulkan) {
            Ok(device) => device,
            Err(error) => {
                halfbyte_testing::skip(halfbyte_testing::Lacking::Vulkan, error);
                return;
            }
        };
        let mut x = rows(5 * 20, 1);
        x[3 * 20 + 7] = f32::INFINITY;
        let x = Tensor::from_data(TensorData::new(x, [1, 5, 20]), &device);
        let x = Activation::of(x).unwrap();
        let mut moments = Moments::new(20, Beside::Nothing, &device);
        assert_eq!(moments.add(&[x.rows(0..5, 5)], &[], None).unwrap(), Some(3));
    }
}
