use burn::prelude::*;
use half::bf16;
use halfbyte_model::{Decoder, Head, ModelError, divergence, values};
use halfbyte_quant::WeightError;

use crate::parameters::{FloatBlocks, Parameters, Rounding, SolvedLinears, TunedModel};

/// Rows whose logits exist at once.
const LOGIT_ROWS: usize = 128;

/// How tuning goes.
#[derive(Clone, Copy, Debug)]
pub struct TuneOptions {
    /// Times every window is seen.
    pub epochs: usize,
    /// Relative size of the first step; it falls to nothing along a cosine.
    pub learning_rate: f64,
    /// Adam's `ε` as a share of a tensor's root mean second moment.
    pub damping: f32,
    /// Windows a step.
    pub batch_windows: usize,
    /// Windows learned from in an epoch, drawn anew for each; all where there are no more.
    pub num_samples: usize,
    /// Order of the windows.
    pub seed: u64,
    /// Rounds a scale to the type it is stored in.
    pub round_scale: fn(f32) -> f32,
    /// Rounds a norm's weight to the type it is stored in.
    pub round_norm: fn(f32) -> f32,
}

/// A window of token ids.
#[derive(Clone, Copy, Debug)]
pub struct TuneWindow<'a> {
    /// Token ids; those from `len` on are padding.
    pub ids: &'a [u32],
    /// Real tokens.
    pub len: usize,
    /// Never learned from: what chooses the epoch to keep.
    pub holdout: bool,
}

/// What tuning did.
#[derive(Clone, Debug, PartialEq)]
pub struct TuneReport {
    /// Mean KL(float || model) on the calibration windows, a value an epoch, while they were learned from.
    pub kl_calibration: Vec<f64>,
    /// The same on the held-out windows before the first epoch and after each; empty without such windows.
    pub kl_heldout: Vec<f64>,
    /// Epochs kept: those up to the least held-out KL.
    pub epochs_kept: usize,
    /// Windows learned from in each epoch.
    pub num_samples: usize,
}

/// Why tuning stopped.
#[derive(Debug, thiserror::Error)]
pub enum TuneError {
    /// The model's fault.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// A tuned scale cannot be stored.
    #[error("tuning gave a scale that cannot be stored: {0}")]
    Weight(#[from] WeightError),
    /// The loss is not finite.
    #[error("tuning: the loss of window {window} is not finite; lower the learning rate")]
    NotFinite {
        /// Which window.
        window: usize,
    },
}

/// Tunes the scales of `blocks`, which stand in the place of `float`'s linears, and all norms so that the model predicts
/// what the float `decoder` does. `targets` are the float model's last residual streams, `[windows, tokens, hidden_size]`
/// in bf16's bits, where they are at hand; else they are made. `tick` hears how many windows of how many were walked.
///
/// # Errors
/// A loss that is not finite; what the model's execution gives.
pub fn tune(
    decoder: &Decoder,
    float: &FloatBlocks<'_>,
    blocks: Vec<SolvedLinears>,
    windows: &[TuneWindow<'_>],
    targets: Option<Vec<u16>>,
    options: &TuneOptions,
    tick: &mut dyn FnMut(u64, u64),
) -> Result<(TunedModel, TuneReport), TuneError> {
    let tokens = windows.first().map_or(0, |w| w.ids.len());
    let run = Run {
        decoder,
        windows,
        tokens,
        targets: match targets {
            Some(targets) => targets,
            None => self::targets(decoder, windows)?,
        },
    };
    let mut parameters = Parameters::new(
        decoder,
        float,
        blocks,
        Rounding {
            scale: options.round_scale,
            norm: options.round_norm,
        },
    )?;
    let (held, mut learned): (Vec<usize>, Vec<usize>) =
        (0..windows.len()).partition(|&w| windows[w].holdout);
    let num_samples = learned.len().min(options.num_samples);
    let total = (options.epochs * num_samples) as u64;
    let steps = options.epochs * num_samples.div_ceil(options.batch_windows);
    let mut report = TuneReport {
        kl_calibration: Vec::new(),
        kl_heldout: Vec::new(),
        epochs_kept: options.epochs,
        num_samples,
    };
    if !held.is_empty() {
        report.kl_heldout.push(run.measure(&parameters, &held)?);
    }
    let mut best: Option<(f64, usize, Vec<Vec<f32>>)> = None;
    let mut keep = |parameters: &mut Parameters<'_>, kl: Option<&f64>, epoch: usize| {
        if let Some(kl) = kl
            && best.as_ref().is_none_or(|(least, ..)| kl < least)
        {
            let mut saved = Vec::new();
            parameters.each(&mut |f| saved.push(f.theta().to_vec()));
            best = Some((*kl, epoch, saved));
        }
    };
    keep(&mut parameters, report.kl_heldout.last(), 0);
    let mut random = options.seed;
    let (mut step, mut done) = (0, 0);
    for epoch in 1..=options.epochs {
        shuffle(&mut learned, &mut random);
        let mut sum = 0.0;
        // only for as long as it is needed: where the vocabulary is large, it is most of what tuning keeps
        let head = decoder.head()?.rounded();
        for batch in learned[..num_samples].chunks(options.batch_windows) {
            step += 1;
            sum += run.learn(&head, &mut parameters, batch, &mut |n| {
                done += n;
                tick(done, total);
            })?;
            let phase = (step - 1) as f32 / steps as f32;
            let fall = 0.5 * (1.0 + (std::f32::consts::PI * phase).cos());
            let rate = options.learning_rate as f32 * fall;
            parameters.each(&mut |factors| factors.step(step, rate, options.damping));
        }
        drop(head);
        report.kl_calibration.push(sum / num_samples.max(1) as f64);
        if !held.is_empty() {
            report.kl_heldout.push(run.measure(&parameters, &held)?);
            keep(&mut parameters, report.kl_heldout.last(), epoch);
        }
        tracing::info!(
            epoch,
            kl = report.kl_calibration.last(),
            kl_heldout = report.kl_heldout.last(),
            "tuned"
        );
    }
    if let Some((_, epoch, saved)) = best {
        let mut saved = saved.into_iter();
        parameters.each(&mut |f| {
            if let Some(theta) = saved.next() {
                f.set_theta(&theta);
            }
        });
        report.epochs_kept = epoch;
    }
    Ok((parameters.finish()?, report))
}

struct Run<'a> {
    decoder: &'a Decoder,
    windows: &'a [TuneWindow<'a>],
    tokens: usize,
    /// The float model's last residual streams, `[windows, tokens, hidden_size]`, in bf16's bits.
    targets: Vec<u16>,
}

impl Run<'_> {
    /// Mean KL a token over some windows.
    fn measure(&self, parameters: &Parameters<'_>, windows: &[usize]) -> Result<f64, TuneError> {
        let mut streams = self.embed(windows)?;
        for index in 0..self.decoder.n_blocks() {
            let block = parameters.block(index, self.tokens)?;
            for h in &mut streams {
                *h = block.forward(h.clone());
            }
        }
        let heads = heads(&self.decoder.head()?, parameters);
        let mut kl = 0.0;
        for (h, &window) in streams.into_iter().zip(windows) {
            kl += self.compare(&heads, h, window, 0.0)?.0;
        }
        let tokens: usize = windows.iter().map(|&w| self.windows[w].len).sum();
        Ok(kl / tokens.max(1) as f64)
    }

    /// Forward and back over a batch, adding its derivatives; the sum over windows of their mean KL.
    fn learn(
        &self,
        float_head: &Head,
        parameters: &mut Parameters<'_>,
        batch: &[usize],
        tick: &mut dyn FnMut(u64),
    ) -> Result<f64, TuneError> {
        let blocks = self.decoder.n_blocks();
        let mut inputs: Vec<Vec<Tensor<3>>> = vec![self.embed(batch)?];
        for index in 0..blocks {
            let block = parameters.block(index, self.tokens)?.rounded();
            let next = inputs[index].iter().map(|h| block.forward(h.clone()));
            inputs.push(next.collect());
        }
        let heads = heads(float_head, parameters);
        let tokens: usize = batch.iter().map(|&w| self.windows[w].len).sum();
        let mut sum = 0.0;
        let mut gradients = Vec::with_capacity(batch.len());
        for (h, &window) in inputs.pop().unwrap_or_default().into_iter().zip(batch) {
            let (kl, gradient, norm) = self.compare(&heads, h, window, 1.0 / tokens as f32)?;
            if !kl.is_finite() {
                return Err(TuneError::NotFinite { window });
            }
            sum += kl / self.windows[window].len as f64;
            parameters.final_norm.add_gradient(&norm);
            gradients.push(gradient);
        }
        for index in (0..blocks).rev() {
            let block = parameters.block(index, self.tokens)?.rounded();
            self.decoder.release_block(index);
            let inputs = inputs.pop().unwrap_or_default();
            for (gradient, h) in gradients.iter_mut().zip(inputs) {
                let found = block.parameter_gradients(h, gradient.clone());
                *gradient = found.input.clone();
                parameters.add(index, found)?;
            }
        }
        tick(batch.len() as u64);
        Ok(sum)
    }

    /// The summed KL of a window; with a `scale`, also the derivatives of `scale` times it with regard to the last
    /// stream and to the final norm.
    fn compare(
        &self,
        [float_head, head]: &[Head; 2],
        h: Tensor<3>,
        window: usize,
        scale: f32,
    ) -> Result<(f64, Tensor<3>, Vec<f32>), TuneError> {
        let [_, tokens, hidden] = h.dims();
        let device = h.device();
        let h = h.reshape([tokens, hidden]);
        let (mut kl, mut parts, mut norm) = (0.0, Vec::new(), vec![0.0; hidden]);
        for start in (0..tokens).step_by(LOGIT_ROWS) {
            let rows = LOGIT_ROWS.min(tokens - start);
            let h = h.clone().narrow(0, start, rows);
            let from = (window * self.tokens + start) * hidden;
            let target = &self.targets[from..from + rows * hidden];
            let target = target
                .iter()
                .map(|x| bf16::from_bits(*x).to_f32())
                .collect();
            let target = Tensor::<2>::from_data(TensorData::new(target, [rows, hidden]), &device);
            let p = values(float_head.forward(target))?;
            let mut q = values(head.forward(h.clone()))?;
            let vocab = q.len() / rows;
            let real = self.windows[window].len.saturating_sub(start).min(rows);
            kl += divergence(&p, &mut q, vocab, real, scale);
            if scale != 0.0 {
                let q = Tensor::from_data(TensorData::new(q, [rows, vocab]), &device);
                let (gradient, of_norm) = head.parameter_gradients(h, q);
                parts.push(gradient);
                let of_norm = values(of_norm)?;
                norm.iter_mut().zip(of_norm).for_each(|(n, g)| *n += g);
            }
        }
        let gradient = if parts.is_empty() {
            Tensor::zeros([1, tokens, hidden], &device)
        } else {
            Tensor::cat(parts, 0).reshape([1, tokens, hidden])
        };
        Ok((kl, gradient, norm))
    }

    fn embed(&self, windows: &[usize]) -> Result<Vec<Tensor<3>>, ModelError> {
        let hidden = self.decoder.weights().config().hidden_size;
        let one = |&window: &usize| {
            let h = self.decoder.embed(self.windows[window].ids)?;
            let h = TensorData::new(h, [1, self.tokens, hidden]);
            Ok(Tensor::from_data(h, self.decoder.device()))
        };
        windows.iter().map(one).collect()
    }
}

/// The float model's head and the tuned one's.
fn heads(float: &Head, parameters: &Parameters<'_>) -> [Head; 2] {
    let mut head = float.clone();
    head.set_norm(parameters.final_norm());
    [float.clone(), head]
}

/// The float model's last residual streams, `[windows, tokens, hidden_size]`, in bf16's bits.
fn targets(decoder: &Decoder, windows: &[TuneWindow<'_>]) -> Result<Vec<u16>, TuneError> {
    let hidden = decoder.weights().config().hidden_size;
    let mut streams = windows
        .iter()
        .map(|w| decoder.embed(w.ids))
        .collect::<Result<Vec<_>, _>>()?;
    for index in 0..decoder.n_blocks() {
        let tokens = windows.first().map_or(0, |w| w.ids.len());
        // as exact as what they are kept in
        let block = decoder.block(index, tokens)?.rounded();
        decoder.release_block(index);
        for stream in &mut streams {
            let h = TensorData::new(std::mem::take(stream), [1, tokens, hidden]);
            *stream = values(block.forward(Tensor::<3>::from_data(h, decoder.device())))?;
        }
    }
    let bits = |stream: Vec<f32>| stream.into_iter().map(|x| bf16::from_f32(x).to_bits());
    Ok(streams.into_iter().flat_map(bits).collect())
}

/// Fisher-Yates with SplitMix64.
fn shuffle(items: &mut [usize], state: &mut u64) {
    for i in (1..items.len()).rev() {
        *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = *state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        items.swap(i, ((z ^ (z >> 31)) % (i as u64 + 1)) as usize);
    }
}
