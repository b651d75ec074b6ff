use super::{Section, figure};
use crate::chart::{Axis, Plot, Point, Series, Shape};
use crate::markup::{escape, short};
use crate::text::count;
use crate::{CodesRecord, RunRecord};

const CLASSES: [&str; 4] = ["c0", "c1", "c2", "c3"];

/// How often every code was chosen, and what lies outside all of them.
pub(super) fn codes(run: &RunRecord) -> Option<Section> {
    let mut kinds: Vec<&CodesRecord> = run.codes.iter().collect();
    let total = |kind: &CodesRecord| kind.counts.iter().sum::<u64>();
    kinds.retain(|kind| total(kind) > 0);
    kinds.sort_by_key(|kind| std::cmp::Reverse(total(kind)));
    if kinds.is_empty() {
        return None;
    }
    let series = kinds.iter().zip(CLASSES).zip(Shape::ALL);
    let series = series.map(|((kind, class), shape)| {
        let (levels, all) = (kind.counts.len(), total(kind));
        let point = |(code, &n): (usize, &u64)| Point {
            x: 2.0 * code as f64 / (levels - 1) as f64 - 1.0,
            y: n as f64 / all as f64 * levels as f64,
            title: format!(
                "{}, code {code}: {} % of {} weights",
                kind.name,
                short(100.0 * n as f64 / all as f64),
                count(all)
            ),
            ..Point::default()
        };
        Series {
            name: kind.name.clone(),
            class,
            shape,
            line: true,
            points: kind.counts.iter().enumerate().map(point).collect(),
        }
    });
    let chart = Plot {
        id: "codes",
        title: "How often codes are chosen",
        desc: "A mark a code from the lowest at -1 to the highest at 1: its share of the weights, 1 where all codes are chosen alike.",
        x: Axis::linear("code, from the lowest to the highest"),
        y: Axis::linear("share of the weights, times codes"),
        diagonal: false,
        series: series.collect(),
    };
    let weights = |l: &crate::LinearRecord| (l.out_features * l.in_features) as f64;
    let all: f64 = run.linears.iter().map(weights).sum();
    let clipped: f64 = run
        .linears
        .iter()
        .map(|l| l.clipped_share * weights(l))
        .sum();
    let caption = "1 where all codes are chosen alike. Marks at the ends that stand above their neighbours are weights cut to the range.";
    let html = figure("Codes", caption, &chart.render())
        + &format!(
            "<p>{} % of all weights lie outside their group's range and are cut to it.</p>\n",
            escape(&short(100.0 * clipped / all))
        );
    Some(Section {
        id: "codes",
        name: "Codes",
        html,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::run;
    use crate::markup::tests::elements;

    #[test]
    fn every_code_has_its_mark_and_its_share() {
        let mut run = run();
        assert!(
            codes(&run).is_none(),
            "a record from before codes were counted"
        );
        run.codes = vec![
            CodesRecord {
                name: "2 bits".to_owned(),
                counts: vec![10, 40, 30, 20],
            },
            CodesRecord {
                name: "3 bits".to_owned(),
                counts: vec![100; 8],
            },
        ];
        let html = codes(&run).unwrap().html;
        assert!(
            html.contains("2 bits, code 1: 40.0 % of 100 weights"),
            "{html}"
        );
        assert!(
            html.contains("3 bits, code 7: 12.5 % of 800 weights"),
            "{html}"
        );
        let elements = elements(&html);
        let titles = elements.iter().filter(|e| e.starts_with("title"));
        assert_eq!(titles.count(), 1 + 4 + 8);
    }
}
