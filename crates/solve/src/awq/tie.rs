use crate::SolveError;

/// How the input channels of o share scales when several query heads read one kv head.
///
/// Channel `h * head_dim + d` of o's input is a mixture of value channel `d` of kv head `h / (n_heads / n_kv_heads)`.
/// Folding `1/s` into v's rows therefore needs one `s` for all query heads of a kv head. The peers leave o unscaled
/// under such attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeadTie {
    n_heads: usize,
    n_kv_heads: usize,
    head_dim: usize,
}

impl HeadTie {
    /// Checks that every kv head serves a whole number of query heads.
    ///
    /// # Errors
    /// A count of zero, or kv heads that do not divide the heads.
    pub fn new(n_heads: usize, n_kv_heads: usize, head_dim: usize) -> Result<Self, SolveError> {
        let divides = n_kv_heads > 0 && n_heads > 0 && n_heads.is_multiple_of(n_kv_heads);
        if !divides || head_dim == 0 {
            return Err(SolveError::Shape {
                part: "heads that do not fall evenly to kv heads",
                found: n_heads,
                wanted: n_kv_heads,
            });
        }
        Ok(Self {
            n_heads,
            n_kv_heads,
            head_dim,
        })
    }

    /// Input channels of o, `n_heads * head_dim`.
    pub fn channels(&self) -> usize {
        self.n_heads * self.head_dim
    }

    /// Rows of v, `n_kv_heads * head_dim`.
    pub fn tied_channels(&self) -> usize {
        self.n_kv_heads * self.head_dim
    }

    /// Means over the query heads of each kv head: `[channels]` to `[tied_channels]`.
    ///
    /// # Errors
    /// Another number of channels.
    pub fn mean(&self, per_channel: &[f32]) -> Result<Vec<f32>, SolveError> {
        self.check(per_channel.len(), self.channels())?;
        let mut sums = vec![0.0f64; self.tied_channels()];
        for (channel, &value) in per_channel.iter().enumerate() {
            sums[self.tied(channel)] += f64::from(value);
        }
        let heads = (self.n_heads / self.n_kv_heads) as f64;
        Ok(sums.into_iter().map(|s| (s / heads) as f32).collect())
    }

    /// Gives every query head the values of its kv head: `[tied_channels]` to `[channels]`.
    ///
    /// # Errors
    /// Another number of channels.
    pub fn expand(&self, per_tied: &[f32]) -> Result<Vec<f32>, SolveError> {
        self.check(per_tied.len(), self.tied_channels())?;
        Ok((0..self.channels())
            .map(|channel| per_tied[self.tied(channel)])
            .collect())
    }

    /// The tied channel that an input channel of o mixes.
    fn tied(&self, channel: usize) -> usize {
        let (head, d) = (channel / self.head_dim, channel % self.head_dim);
        head / (self.n_heads / self.n_kv_heads) * self.head_dim + d
    }

    fn check(&self, found: usize, wanted: usize) -> Result<(), SolveError> {
        if found == wanted {
            return Ok(());
        }
        Err(SolveError::Shape {
            part: "channels of the heads",
            found,
            wanted,
        })
    }
}
