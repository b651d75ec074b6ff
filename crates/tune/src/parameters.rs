use halfbyte_model::{
    Block, Decoder, LinearKind, ModelError, NormKind, ParameterGradients, values,
};
use halfbyte_quant::{QuantizedWeight, WeightError};
use rayon::prelude::*;

use crate::TuneError;
use crate::adam::Factors;

/// The quantized linears of a block; those that are missing stay float.
pub type SolvedLinears = Vec<(LinearKind, QuantizedWeight)>;

/// Gives block `index`, ready for windows of so many tokens, as the codes were solved for it: the float model's, or
/// that with channels scaled.
pub type FloatBlocks<'a> = dyn Fn(usize, usize) -> Result<Block, ModelError> + 'a;

/// A block as tuned.
#[derive(Clone, Debug, Default)]
pub struct TunedBlock {
    /// The quantized linears.
    pub linears: SolvedLinears,
    /// All norms' weights, as they will be stored.
    pub norms: Vec<(NormKind, Vec<f32>)>,
}

/// What tuning gives back.
#[derive(Clone, Debug)]
pub struct TunedModel {
    /// Every block.
    pub blocks: Vec<TunedBlock>,
    /// The final norm's weight.
    pub final_norm: Vec<f32>,
}

/// How numbers are rounded to what a checkpoint stores.
#[derive(Clone, Copy)]
pub(crate) struct Rounding {
    pub(crate) scale: fn(f32) -> f32,
    pub(crate) norm: fn(f32) -> f32,
}

/// All that is tuned.
pub(crate) struct Parameters<'a> {
    float: &'a FloatBlocks<'a>,
    pub(crate) blocks: Vec<BlockParameters>,
    pub(crate) final_norm: Factors,
    rounding: Rounding,
}

pub(crate) struct BlockParameters {
    linears: Vec<(LinearKind, QuantizedWeight, Factors)>,
    norms: Vec<(NormKind, Factors)>,
}

impl<'a> Parameters<'a> {
    pub(crate) fn new(
        decoder: &Decoder,
        float: &'a FloatBlocks<'a>,
        blocks: Vec<SolvedLinears>,
        rounding: Rounding,
    ) -> Result<Self, ModelError> {
        let read = |index: usize, linears: SolvedLinears| -> Result<BlockParameters, ModelError> {
            let block = float(index, 1)?;
            let mut norms = Vec::new();
            for kind in NormKind::ALL {
                if let Some(weight) = block.norm_weight(kind) {
                    norms.push((kind, Factors::new(values(weight.clone())?)));
                }
            }
            let linears = linears.into_iter().map(|(kind, weight)| {
                let scales = Factors::new(weight.scales().to_vec());
                (kind, weight, scales)
            });
            Ok(BlockParameters {
                linears: linears.collect(),
                norms,
            })
        };
        Ok(Self {
            float,
            blocks: blocks
                .into_iter()
                .enumerate()
                .map(|(index, linears)| read(index, linears))
                .collect::<Result<_, _>>()?,
            final_norm: Factors::new(decoder.weights().vector("model.norm.weight")?),
            rounding,
        })
    }

    /// Block `index` with the weights that its codes and the present scales stand for.
    pub(crate) fn block(&self, index: usize, tokens: usize) -> Result<Block, ModelError> {
        let mut block = (self.float)(index, tokens)?;
        let parameters = &self.blocks[index];
        for (kind, weight, scales) in &parameters.linears {
            let scales = self.stored(scales, self.rounding.scale);
            block
                .linears
                .get_mut(*kind)
                .set_weight(weight.dequantize_with(&scales));
        }
        for (kind, norm) in &parameters.norms {
            block.set_norm(*kind, self.stored(norm, self.rounding.norm));
        }
        Ok(block)
    }

    /// The final norm as it would be stored.
    pub(crate) fn final_norm(&self) -> Vec<f32> {
        self.stored(&self.final_norm, self.rounding.norm)
    }

    fn stored(&self, factors: &Factors, round: fn(f32) -> f32) -> Vec<f32> {
        factors.values().into_iter().map(round).collect()
    }

    /// Adds a block's derivatives.
    pub(crate) fn add(
        &mut self,
        index: usize,
        gradients: ParameterGradients,
    ) -> Result<(), TuneError> {
        let block = &mut self.blocks[index];
        for (kind, gradient) in gradients.weights {
            if let Some((_, weight, scales)) = block.linears.iter_mut().find(|(k, ..)| *k == kind) {
                scales.add_gradient(&of_scales(weight, &values(gradient)?));
            }
        }
        for (kind, gradient) in gradients.norms {
            if let Some((_, norm)) = block.norms.iter_mut().find(|(k, _)| *k == kind) {
                norm.add_gradient(&values(gradient)?);
            }
        }
        Ok(())
    }

    /// Every tensor's factors.
    pub(crate) fn each(&mut self, f: &mut dyn FnMut(&mut Factors)) {
        for block in &mut self.blocks {
            block.linears.iter_mut().for_each(|(_, _, s)| f(s));
            block.norms.iter_mut().for_each(|(_, n)| f(n));
        }
        f(&mut self.final_norm);
    }

    pub(crate) fn finish(self) -> Result<TunedModel, WeightError> {
        let final_norm = self.final_norm();
        let rounding = self.rounding;
        let stored =
            |f: &Factors, round: fn(f32) -> f32| f.values().into_iter().map(round).collect();
        let blocks = self.blocks.into_iter().map(|block| {
            let linears = block.linears.into_iter().map(|(kind, weight, scales)| {
                Ok((kind, weight.with_scales(stored(&scales, rounding.scale))?))
            });
            Ok(TunedBlock {
                linears: linears.collect::<Result<_, WeightError>>()?,
                norms: block
                    .norms
                    .iter()
                    .map(|(kind, norm)| (*kind, stored(norm, rounding.norm)))
                    .collect(),
            })
        });
        Ok(TunedModel {
            blocks: blocks.collect::<Result<_, WeightError>>()?,
            final_norm,
        })
    }
}

/// From a derivative with regard to a weight, `[out, in]`, to that with regard to its scales, `[out, groups]`:
/// `Σ_k g_k (code_k − zero)` over each group.
fn of_scales(weight: &QuantizedWeight, gradient: &[f32]) -> Vec<f32> {
    let (columns, groups) = (weight.in_features(), weight.n_groups());
    let group = weight.scheme().group_len(columns);
    let mut sums = vec![0.0; weight.out_features() * groups];
    sums.par_chunks_mut(groups)
        .zip(weight.codes().par_chunks(columns))
        .zip(gradient.par_chunks(columns))
        .zip(weight.zeros().par_chunks(groups))
        .for_each(|(((sums, codes), gradient), zeros)| {
            let parts = codes.chunks(group).zip(gradient.chunks(group));
            for ((sum, (codes, gradient)), zero) in sums.iter_mut().zip(parts).zip(zeros) {
                let zero = f32::from(*zero);
                let pairs = codes.iter().zip(gradient);
                *sum = pairs.map(|(c, g)| g * (f32::from(*c) - zero)).sum();
            }
        });
    sums
}

#[cfg(test)]
mod tests {
    use halfbyte_quant::{GroupSize, Scheme};

    use super::*;

    #[test]
    fn scale_derivatives_are_those_of_the_dequantized_weight() {
        let scheme = Scheme::new(4, GroupSize::from_i64(16).unwrap(), false).unwrap();
        let codes: Vec<u8> = (0..48).map(|i| (i * 7 % 16) as u8).collect();
        let weight = QuantizedWeight::new(
            scheme,
            [2, 24],
            codes,
            vec![0.5, 0.25, 1.0, 2.0],
            vec![8, 7, 3, 0],
        )
        .unwrap();
        let gradient: Vec<f32> = (0..48).map(|i| (i as f32 * 0.37).sin()).collect();
        let found = of_scales(&weight, &gradient);
        for (i, found) in found.iter().enumerate() {
            let loss = |by: f32| -> f64 {
                let mut scales = weight.scales().to_vec();
                scales[i] += by;
                let w = weight.dequantize_with(&scales);
                w.iter().zip(&gradient).map(|(w, g)| f64::from(w * g)).sum()
            };
            let slope = (loss(0.5) - loss(-0.5)) as f32;
            assert!((slope - found).abs() < 1e-4, "{slope} {found}");
        }
    }
}
