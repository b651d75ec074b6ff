use burn::tensor::{Device, Tensor};
use burn_cubecl::{CubeBackend, CubeDevice};
use cubecl::client::Client;
use cubecl::features::{Plane, TypeUsage};
use cubecl::ir::{ElemType, FloatKind};
use cubecl::prelude::CubeCount;

use crate::kernel::{MatmatPlan, MatvecPlan};
use crate::layout::{Format, TILE_ROWS};
use crate::{Capabilities, DeviceError, KernelError};

/// Storage buffers that a kernel binds: activations, codes, scales, zero points, result, and the scalars.
const BINDINGS: u64 = 6;
/// Parts a row's chunks are dealt to at most: at 8 units each, 256 units a workgroup.
const SLICES: usize = 32;
/// Tiles of eight rows from which a workgroup takes two: below, workgroups are too few to fill a large device.
const TILES_FOR_TWO: usize = 256;

impl Capabilities {
    /// Asks a device.
    ///
    /// # Errors
    /// [`KernelError::Elsewhere`] for a device that is no GPU device, [`DeviceError::NoAdapter`] for one that cannot be opened.
    pub fn of(device: &Device) -> Result<Self, KernelError> {
        let (client, _) = open(device)?;
        let properties = client.properties();
        let hardware = &properties.hardware;
        let f16 = ElemType::Float(FloatKind::F16);
        let (x, y, z) = hardware.max_cube_count;
        Ok(Self {
            name: properties.identity.name.clone(),
            runtime: client.name().to_owned(),
            f16: properties
                .features
                .type_usage(f16)
                .is_superset(TypeUsage::Buffer | TypeUsage::Arithmetic),
            subgroups: properties.features.plane.contains(Plane::Ops),
            subgroup_size: [hardware.plane_size_min, hardware.plane_size_max],
            matrix_units: !properties.features.matmul.cmma.is_empty(),
            workgroup_bytes: hardware.max_shared_memory_size,
            workgroup_units: hardware.max_units_per_cube.min(hardware.max_cube_dim.0) as usize,
            workgroups: [x, y, z],
            bindings: u64::from(hardware.max_bindings),
            binding_bytes: properties.memory.max_page_size,
        })
    }

    /// What every kernel needs.
    pub(crate) fn check(&self) -> Result<(), KernelError> {
        for (what, found, wanted) in [
            ("storage buffers at once", self.bindings, BINDINGS),
            ("units a workgroup", self.workgroup_units as u64, 64),
            (
                "bytes of workgroup memory",
                self.workgroup_bytes as u64,
                MATMAT_PLANS[MATMAT_PLANS.len() - 1].shared_bytes() as u64,
            ),
        ] {
            if found < wanted {
                return Err(KernelError::Missing {
                    what,
                    found,
                    wanted,
                });
            }
        }
        Ok(())
    }

    /// A buffer must fit one binding.
    pub(crate) fn check_bytes(&self, what: &'static str, bytes: u64) -> Result<(), KernelError> {
        if bytes > self.binding_bytes {
            return Err(KernelError::TooLarge {
                what,
                bytes,
                limit: self.binding_bytes,
            });
        }
        Ok(())
    }

    /// `count` workgroups as a grid; a kernel gets along with some too many.
    pub(crate) fn grid(&self, count: usize) -> CubeCount {
        let [x, y, _] = self.workgroups.map(|n| n as usize);
        let columns = count.min(x);
        let lines = count.div_ceil(columns.max(1));
        let layers = lines.div_ceil(y);
        CubeCount::Static(columns as u32, lines.min(y) as u32, layers as u32)
    }

    pub(crate) fn matvec_plan(&self, shape: MatvecShape, format: Format) -> MatvecPlan {
        let mut plan = MatvecPlan {
            slices: shape.chunks.next_power_of_two().min(SLICES),
            tiles: if shape.tiles < TILES_FOR_TWO { 1 } else { 2 },
            batch: shape.tokens.next_power_of_two(),
            ragged: shape.chunks * format.chunk() > shape.quads * 4,
        };
        // The smallest device that passes the check holds a slice of both tiles and eight tokens.
        while plan.slices * TILE_ROWS > self.workgroup_units
            || plan.shared_bytes() > self.workgroup_bytes
        {
            plan.slices /= 2;
        }
        plan
    }

    pub(crate) fn matmat_plan(&self, tokens: usize, rows: usize) -> MatmatPlan {
        let fits = |plan: &&MatmatPlan| {
            plan.side * plan.side <= self.workgroup_units
                && plan.shared_bytes() <= self.workgroup_bytes
                && (plan.per_unit < 8 || tokens.min(rows) >= plan.span())
        };
        let last = &MATMAT_PLANS[MATMAT_PLANS.len() - 1];
        *MATMAT_PLANS.iter().find(fits).unwrap_or(last)
    }
}

/// A matrix-vector product, counted.
#[derive(Clone, Copy, Debug)]
pub(crate) struct MatvecShape {
    pub(crate) tokens: usize,
    pub(crate) tiles: usize,
    pub(crate) chunks: usize,
    pub(crate) quads: usize,
}

/// From the largest to the one that every device holds.
const MATMAT_PLANS: [MatmatPlan; 4] = [
    MatmatPlan {
        side: 16,
        per_unit: 8,
        depth: 16,
    },
    MatmatPlan {
        side: 16,
        per_unit: 4,
        depth: 32,
    },
    MatmatPlan {
        side: 16,
        per_unit: 4,
        depth: 16,
    },
    MatmatPlan {
        side: 8,
        per_unit: 4,
        depth: 16,
    },
];

/// The client behind a device of burn's.
pub(crate) fn open(device: &Device) -> Result<(Client, CubeDevice), KernelError> {
    // A device that nothing answers to panics at its first use, in burn.
    let first = std::panic::AssertUnwindSafe(|| {
        Tensor::<1>::zeros([1], device).try_into_primitive::<CubeBackend>()
    });
    let tensor = std::panic::catch_unwind(first)
        .map_err(|panic| {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
            DeviceError::NoAdapter(text.unwrap_or("none answers").to_owned())
        })?
        .map_err(|e| KernelError::Elsewhere(format!("{device:?} is no GPU device ({e:?})")))?;
    Ok((tensor.client.clone(), tensor.device))
}
