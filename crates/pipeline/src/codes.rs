//! How often every code was chosen.

use anyhow::Result;
use halfbyte_quant::CodedWeight;
use halfbyte_report::CodesRecord;

use crate::work::Work;

/// Counts the codes of all finished blocks, one record for each kind of codes, in the order in which they come.
pub(crate) fn count_codes(work: &Work, blocks: usize) -> Result<Vec<CodesRecord>> {
    let mut all: Vec<CodesRecord> = Vec::new();
    for block in 0..blocks {
        for solved in work.load(block)? {
            let (name, counts) = counted(&solved.weight);
            match all.iter_mut().find(|record| record.name == name) {
                Some(record) => (record.counts.iter_mut().zip(counts)).for_each(|(a, b)| *a += b),
                None => all.push(CodesRecord { name, counts }),
            }
        }
    }
    Ok(all)
}

fn counted(weight: &CodedWeight) -> (String, Vec<u64>) {
    let count = |codes: &[u8], levels: usize| {
        let mut counts = vec![0; levels];
        codes
            .iter()
            .for_each(|&code| counts[usize::from(code)] += 1);
        counts
    };
    match weight {
        CodedWeight::Grid(weight) => {
            let scheme = weight.scheme();
            let zeros = if scheme.sym() {
                ""
            } else {
                " with zero points"
            };
            (
                format!("{} bits{zeros}", scheme.bits()),
                count(weight.codes(), usize::from(scheme.max_code()) + 1),
            )
        }
        CodedWeight::Codebook(weight) => {
            let levels = weight.codebook().levels();
            let mut rising: Vec<usize> = (0..levels.len()).collect();
            rising.sort_by(|&a, &b| levels[a].total_cmp(&levels[b]));
            let counts = count(weight.codes(), levels.len());
            (
                weight.codebook().as_str().to_owned(),
                rising.into_iter().map(|code| counts[code]).collect(),
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use halfbyte_quant::{GroupSize, QuantizedWeight, Scheme};

    use super::*;

    #[test]
    fn every_code_is_counted() {
        let scheme = Scheme::new(2, GroupSize::Channel, false).unwrap();
        let weight = QuantizedWeight::new(
            scheme,
            [2, 4],
            vec![0, 3, 3, 1, 3, 0, 3, 3],
            vec![1.0; 2],
            vec![1; 2],
        );
        let (name, counts) = counted(&weight.unwrap().into());
        assert_eq!(
            (name.as_str(), counts),
            ("2 bits with zero points", vec![2, 1, 0, 5])
        );
    }
}
