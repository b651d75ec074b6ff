//! What `halfbyte devices` tells: the adapters, what they said when asked, and whether they compute what the CPU does.

use std::fmt;

use halfbyte_kernels::Capabilities;
use serde::Serialize;

/// Every adapter that wgpu finds.
#[derive(Debug, Serialize)]
pub(crate) struct Devices {
    adapters: Vec<Adapter>,
    /// What could not be listed, and why.
    errors: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Adapter {
    capabilities: Capabilities,
    /// What is wrong with it; nothing where the kernels gave the CPU's results.
    fault: Option<String>,
}

/// Opens and tests every adapter.
pub(crate) fn find() -> Devices {
    let mut found = Devices {
        adapters: Vec::new(),
        errors: Vec::new(),
    };
    let devices = halfbyte_kernels::devices().unwrap_or_else(|error| {
        found.errors.push(error.to_string());
        Vec::new()
    });
    for device in devices {
        match Capabilities::of(&device) {
            Ok(capabilities) => found.adapters.push(Adapter {
                capabilities,
                fault: halfbyte_kernels::self_test(&device)
                    .err()
                    .map(|e| e.to_string()),
            }),
            Err(error) => found.errors.push(error.to_string()),
        }
    }
    found
}

impl fmt::Display for Devices {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Adapter {
            capabilities: c,
            fault,
        } in &self.adapters
        {
            let has = |has| if has { "yes" } else { "no" };
            let [smallest, largest] = c.subgroup_size;
            writeln!(f, "{} by {}", c.name, c.runtime)?;
            writeln!(
                f,
                "  f16 {}, subgroups {} (of {smallest} to {largest}), matrix units {}",
                has(c.f16),
                has(c.subgroups),
                has(c.matrix_units)
            )?;
            writeln!(
                f,
                "  workgroups of {} units with {} KiB, buffers of {} MiB",
                c.workgroup_units,
                c.workgroup_bytes >> 10,
                c.binding_bytes >> 20
            )?;
            match fault {
                None => writeln!(f, "  self-test passed")?,
                Some(fault) => writeln!(f, "  self-test failed: {fault}")?,
            }
        }
        for error in &self.errors {
            writeln!(f, "{error}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_faulty_adapter_is_told_with_its_fault() {
        let capabilities = Capabilities {
            name: "Some GPU".into(),
            runtime: "wgpu<wgsl>".into(),
            f16: false,
            subgroups: true,
            subgroup_size: [32, 64],
            matrix_units: false,
            workgroup_bytes: 32768,
            workgroup_units: 1024,
            workgroups: [65535; 3],
            bindings: 8,
            binding_bytes: 128 << 20,
        };
        let devices = Devices {
            adapters: vec![Adapter {
                capabilities,
                fault: Some("zeros".into()),
            }],
            errors: vec!["no other".into()],
        };
        assert_eq!(
            devices.to_string(),
            "Some GPU by wgpu<wgsl>\n  f16 no, subgroups yes (of 32 to 64), matrix units no\n  workgroups of 1024 \
             units with 32 KiB, buffers of 128 MiB\n  self-test failed: zeros\nno other\n"
        );
    }
}
