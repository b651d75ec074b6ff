use burn::prelude::*;

use crate::attention::{attention_mix, seen};
use crate::host;

/// Positions that a cache on a device grows by.
const GROWTH: usize = 256;

/// The rotated keys and the values that one block made of a window's tokens so far. On the CPU they are kept a token
/// after the other, elsewhere in tensors that grow in steps.
#[derive(Clone, Debug, Default)]
pub struct KeyValueCache {
    kept: Option<Kept>,
    len: usize,
}

#[derive(Clone, Debug)]
#[expect(clippy::large_enum_variant, reason = "one a block")]
enum Kept {
    /// `[positions, kv_heads, head_dim]`.
    Host { keys: Vec<f32>, values: Vec<f32> },
    /// `[1, kv_heads, capacity, head_dim]`.
    Device { keys: Tensor<4>, values: Tensor<4> },
}

impl KeyValueCache {
    /// Tokens seen.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing was seen yet.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes of keys and values.
    pub fn bytes(&self) -> u64 {
        match &self.kept {
            None => 0,
            Some(Kept::Host { keys, values }) => 4 * (keys.len() + values.len()) as u64,
            Some(Kept::Device { keys, .. }) => 8 * keys.dims().iter().product::<usize>() as u64,
        }
    }

    /// Takes the next tokens' keys and values, `[1, kv_heads, tokens, head_dim]`, and mixes all values that their
    /// queries, `[1, heads, tokens, head_dim]`, see: `[1, heads, tokens, head_dim]`.
    pub(crate) fn attend(
        &mut self,
        q: Tensor<4>,
        k: Tensor<4>,
        v: Tensor<4>,
        sliding_window: Option<usize>,
    ) -> Tensor<4> {
        let first = self.len;
        self.len += k.dims()[2];
        let kept = match self.kept.take() {
            Some(kept) => kept.append(k.clone(), v.clone(), first),
            None => Kept::new(k.clone(), v.clone()),
        };
        let mixed = match &kept {
            // products of matrices are quicker than the pass below
            _ if first == 0 => attention_mix(q, k, v, sliding_window),
            Kept::Host { keys, values } => {
                let kv_heads = v.dims()[1];
                host::attend(q, keys, values, kv_heads, |query| {
                    seen(first + query, sliding_window)
                })
            }
            Kept::Device { keys, values } => {
                let all = |tensor: &Tensor<4>| tensor.clone().narrow(2, 0, self.len);
                attention_mix(q, all(keys), all(values), sliding_window)
            }
        };
        self.kept = Some(kept);
        mixed
    }
}

impl Kept {
    fn new(k: Tensor<4>, v: Tensor<4>) -> Self {
        if host::is_host(&k) {
            let empty = Self::Host {
                keys: Vec::new(),
                values: Vec::new(),
            };
            return empty.append(k, v, 0);
        }
        let [_, kv_heads, _, head_dim] = k.dims();
        let none = Tensor::zeros([1, kv_heads, 0, head_dim], &k.device());
        Self::Device {
            keys: put(none.clone(), k, 0),
            values: put(none, v, 0),
        }
    }

    fn append(self, k: Tensor<4>, v: Tensor<4>, first: usize) -> Self {
        match self {
            Self::Host {
                mut keys,
                mut values,
            } => {
                keys.extend(host::taken(k.swap_dims(1, 2)));
                values.extend(host::taken(v.swap_dims(1, 2)));
                Self::Host { keys, values }
            }
            Self::Device { keys, values } => Self::Device {
                keys: put(keys, k, first),
                values: put(values, v, first),
            },
        }
    }
}

/// `tensor` with `new` from position `first` on, grown where there is no room.
fn put(tensor: Tensor<4>, new: Tensor<4>, first: usize) -> Tensor<4> {
    let [_, kv_heads, capacity, head_dim] = tensor.dims();
    let end = first + new.dims()[2];
    let mut tensor = tensor;
    if end > capacity {
        let more = end.next_multiple_of(GROWTH) - capacity;
        let room = Tensor::zeros([1, kv_heads, more, head_dim], &new.device());
        tensor = if capacity == 0 {
            room
        } else {
            Tensor::cat(vec![tensor, room], 2)
        };
    }
    tensor.slice_assign([0..1, 0..kv_heads, first..end, 0..head_dim], new)
}
