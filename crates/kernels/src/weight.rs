use std::fmt;

use burn::tensor::{DType, Device, Tensor};
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::{CubeBackend, CubeDevice};
use cubecl::client::Client;
use cubecl::ir::{ElemType, FloatKind};
use cubecl::prelude::{BufferArg, CubeDim, CubeElement};
use cubecl::server::Handle;

use crate::device::{MatvecShape, open};
use crate::layout::{Format, TILE_ROWS};
use crate::{Capabilities, KernelError, MATVEC_TOKENS, PackedWeight, kernel, self_test};

/// A packed weight in a device's memory, ready to multiply.
#[derive(Clone)]
pub struct DeviceWeight {
    client: Client,
    device: CubeDevice,
    capabilities: Capabilities,
    format: Format,
    out_features: usize,
    in_features: usize,
    n_groups: usize,
    n_chunks: usize,
    bytes: u64,
    parts: Vec<Part>,
}

/// Whole tiles of rows whose codes fit one binding.
#[derive(Clone, Debug)]
struct Part {
    first_row: usize,
    rows: usize,
    codes: Buffer,
    scales: Buffer,
    zeros: Buffer,
}

/// Words in device memory.
#[derive(Clone, Debug)]
struct Buffer {
    handle: Handle,
    words: usize,
}

impl Buffer {
    fn new(client: &Client, words: &[u32]) -> Self {
        // A binding of no bytes does not exist; the kernels of a symmetric weight read no zero points.
        let words = if words.is_empty() { &[0] } else { words };
        Self {
            handle: client.create_from_slice(u32::as_bytes(words)),
            words: words.len(),
        }
    }

    fn arg(&self) -> BufferArg {
        // SAFETY: the handle was made of that many words.
        unsafe { BufferArg::from_raw_parts(self.handle.clone(), self.words) }
    }
}

impl fmt::Debug for DeviceWeight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeviceWeight")
            .field("format", &self.format)
            .field("out_features", &self.out_features)
            .field("in_features", &self.in_features)
            .field("device", &self.device)
            .finish_non_exhaustive()
    }
}

impl DeviceWeight {
    /// Copies a packed weight to a device, in as many parts as its limit on bindings asks for; the first upload to a
    /// device [tests](self_test()) it. Errors of the transfer itself surface at the first read of a product.
    ///
    /// # Errors
    /// Those of [`self_test()`], and [`KernelError::TooLarge`] if eight rows are more than the device can bind.
    pub fn upload(packed: &PackedWeight, device: &Device) -> Result<Self, KernelError> {
        Self::upload_with(packed, device, self_test(device)?)
    }

    /// The same on a device taken for a lesser one.
    pub(crate) fn upload_with(
        packed: &PackedWeight,
        device: &Device,
        capabilities: Capabilities,
    ) -> Result<Self, KernelError> {
        capabilities.check()?;
        let (client, cube_device) = open(device)?;
        let per_tile = |words: &[u32]| words.len() / packed.n_tiles();
        let (codes, scales, zeros) = (
            per_tile(&packed.codes),
            per_tile(&packed.scales),
            per_tile(&packed.zeros),
        );
        let tile_bytes = 4 * codes.max(scales) as u64;
        capabilities.check_bytes("eight rows of the weight", tile_bytes)?;
        let tiles = (capabilities.binding_bytes / tile_bytes).min(packed.n_tiles() as u64) as usize;
        let parts = (0..packed.n_tiles()).step_by(tiles).map(|first| {
            let last = (first + tiles).min(packed.n_tiles());
            let first_row = first * TILE_ROWS;
            Part {
                first_row,
                rows: (last * TILE_ROWS).min(packed.out_features()) - first_row,
                codes: Buffer::new(&client, &packed.codes[first * codes..last * codes]),
                scales: Buffer::new(&client, &packed.scales[first * scales..last * scales]),
                zeros: Buffer::new(&client, &packed.zeros[first * zeros..last * zeros]),
            }
        });
        Ok(Self {
            parts: parts.collect(),
            client,
            device: cube_device,
            capabilities,
            format: packed.format(),
            out_features: packed.out_features(),
            in_features: packed.in_features(),
            n_groups: packed.n_groups(),
            n_chunks: packed.n_chunks(),
            bytes: packed.bytes(),
        })
    }

    /// Rows.
    pub fn out_features(&self) -> usize {
        self.out_features
    }

    /// Columns.
    pub fn in_features(&self) -> usize {
        self.in_features
    }

    /// Bytes one product reads of the weight.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The device as the kernels see it.
    pub fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    /// `y = x Wᵀ`: `x` `[tokens, in_features]` in f32 or f16 to `[tokens, out_features]` of the same type, summed in f32.
    /// The weight is never dequantized in device memory.
    ///
    /// # Errors
    /// [`KernelError`] for activations of another width, type or device, and for results beyond the device's limits.
    /// What fails on the device surfaces when the result is read.
    pub fn multiply(&self, x: Tensor<2>) -> Result<Tensor<2>, KernelError> {
        let [tokens, features] = x.dims();
        if features != self.in_features {
            return Err(KernelError::Features {
                found: features,
                wanted: self.in_features,
            });
        }
        let dtype = x.dtype();
        let elem = self.elem(dtype)?;
        let quads = features.div_ceil(4);
        let width = dtype.size() as u64;
        for (what, columns) in [
            ("the activations", 4 * quads),
            ("the result", self.out_features),
        ] {
            self.capabilities
                .check_bytes(what, tokens as u64 * columns as u64 * width)?;
        }
        let x = self.primitive(if features.is_multiple_of(4) {
            x
        } else {
            let padding = Tensor::zeros([tokens, 4 * quads - features], (&x.device(), dtype));
            Tensor::cat(vec![x, padding], 1)
        })?;
        let out = self.empty([tokens, self.out_features], dtype);
        if tokens > 0 {
            for part in &self.parts {
                let product = Product {
                    weight: self,
                    part,
                    x: &x,
                    out: &out,
                    tokens,
                    quads,
                    elem,
                };
                if tokens <= MATVEC_TOKENS {
                    product.matvec();
                } else {
                    product.matmat();
                }
            }
        }
        Ok(Tensor::from_primitive::<CubeBackend>(out))
    }

    /// The weight in full, `[out_features, in_features]` in f32 or f16.
    ///
    /// # Errors
    /// [`KernelError::Type`] for another type, [`KernelError::TooLarge`] beyond the device's limit.
    pub fn dequantize(&self, dtype: DType) -> Result<Tensor<2>, KernelError> {
        let elem = self.elem(dtype)?;
        let (rows, columns) = (self.out_features, self.in_features);
        let bytes = rows as u64 * columns as u64 * dtype.size() as u64;
        self.capabilities.check_bytes("the dense weight", bytes)?;
        let out = self.empty([rows, columns], dtype);
        for part in &self.parts {
            let units = 64;
            let quads = part.rows * columns.div_ceil(4);
            // SAFETY: the kernel leaves alone what lies past the rows of its part and the columns of the weight.
            unsafe {
                kernel::dequantize::launch_unchecked(
                    &self.client,
                    self.capabilities.grid(quads.div_ceil(units)),
                    CubeDim::new_1d(units as u32),
                    if columns.is_multiple_of(4) { 4 } else { 1 },
                    part.codes.arg(),
                    part.scales.arg(),
                    part.zeros.arg(),
                    out.clone().into_buffer_arg(),
                    columns as u32,
                    self.n_chunks as u32,
                    self.n_groups as u32,
                    part.rows as u32,
                    part.first_row as u32,
                    self.format,
                    elem,
                );
            }
        }
        Ok(Tensor::from_primitive::<CubeBackend>(out))
    }

    fn elem(&self, dtype: DType) -> Result<ElemType, KernelError> {
        match dtype {
            DType::F32 => Ok(ElemType::Float(FloatKind::F32)),
            DType::F16 if self.capabilities.f16 => Ok(ElemType::Float(FloatKind::F16)),
            other => Err(KernelError::Type(
                other.name().to_owned(),
                self.capabilities.f16,
            )),
        }
    }

    fn primitive(&self, x: Tensor<2>) -> Result<CubeTensor, KernelError> {
        let x = x
            .try_into_primitive::<CubeBackend>()
            .map_err(|e| KernelError::Elsewhere(format!("activations: {e:?}")))?;
        if x.device != self.device {
            return Err(KernelError::Elsewhere(format!(
                "activations on {:?}",
                x.device
            )));
        }
        Ok(into_contiguous(x))
    }

    fn empty(&self, shape: [usize; 2], dtype: DType) -> CubeTensor {
        empty_device_contiguous_dtype(
            self.client.clone(),
            self.device.clone(),
            shape.into(),
            dtype,
        )
    }
}

/// One launch.
struct Product<'a> {
    weight: &'a DeviceWeight,
    part: &'a Part,
    x: &'a CubeTensor,
    out: &'a CubeTensor,
    tokens: usize,
    quads: usize,
    elem: ElemType,
}

impl Product<'_> {
    fn matvec(&self) {
        let (weight, part) = (self.weight, self.part);
        let tiles = part.rows.div_ceil(TILE_ROWS);
        let shape = MatvecShape {
            tokens: self.tokens,
            tiles,
            chunks: weight.n_chunks,
            quads: self.quads,
        };
        let plan = weight.capabilities.matvec_plan(shape, weight.format);
        // SAFETY: the kernel reads tiles, chunks, groups, tokens and quads that exist, and writes only rows and tokens
        // that do.
        unsafe {
            kernel::matvec::launch_unchecked(
                &weight.client,
                weight.capabilities.grid(tiles.div_ceil(plan.tiles)),
                CubeDim::new_1d((plan.slices * TILE_ROWS) as u32),
                self.x.clone().into_buffer_arg(),
                part.codes.arg(),
                part.scales.arg(),
                part.zeros.arg(),
                self.out.clone().into_buffer_arg(),
                self.tokens as u32,
                self.quads as u32,
                weight.n_chunks as u32,
                weight.n_groups as u32,
                part.rows as u32,
                part.first_row as u32,
                weight.out_features as u32,
                weight.format,
                plan,
                self.elem,
            );
        }
    }

    fn matmat(&self) {
        let (weight, part) = (self.weight, self.part);
        let plan = weight.capabilities.matmat_plan(self.tokens, part.rows);
        let blocks = part.rows.div_ceil(plan.span()) * self.tokens.div_ceil(plan.span());
        // SAFETY: as above.
        unsafe {
            kernel::matmat::launch_unchecked(
                &weight.client,
                weight.capabilities.grid(blocks),
                CubeDim::new_1d((plan.side * plan.side) as u32),
                self.x.clone().into_buffer_arg(),
                part.codes.arg(),
                part.scales.arg(),
                part.zeros.arg(),
                self.out.clone().into_buffer_arg(),
                self.tokens as u32,
                self.quads as u32,
                weight.n_chunks as u32,
                weight.n_groups as u32,
                part.rows as u32,
                part.first_row as u32,
                weight.out_features as u32,
                weight.format,
                plan,
                self.elem,
            );
        }
    }
}
