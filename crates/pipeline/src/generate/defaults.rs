use anyhow::Result;
use halfbyte_checkpoint::ModelFolder;
use serde_json::Value;

use super::stop::json_file;
use super::{Sampling, SamplingRequest};
use crate::error::user_error;
use crate::event::Event;

const FILE: &str = "generation_config.json";

/// Settings that change what other programs generate and that nothing here follows, with the value that changes nothing.
const UNREAD: [(&str, f64); 9] = [
    ("repetition_penalty", 1.0),
    ("presence_penalty", 0.0),
    ("frequency_penalty", 0.0),
    ("no_repeat_ngram_size", 0.0),
    ("min_p", 0.0),
    ("typical_p", 1.0),
    ("epsilon_cutoff", 0.0),
    ("eta_cutoff", 0.0),
    ("num_beams", 1.0),
];

/// How tokens are chosen: as asked for, and where nothing is asked for as the model's generation_config.json says. That the
/// file decides is noted, and what of it is not followed is a warning.
pub(super) fn sampling(
    request: &SamplingRequest,
    folder: &ModelFolder,
    on_event: &mut dyn FnMut(Event),
) -> Result<Sampling> {
    let file = json_file(folder, FILE)?.unwrap_or(Value::Null);
    choose(request, &file, &folder.place(), on_event)
}

fn choose(
    request: &SamplingRequest,
    file: &Value,
    place: &str,
    on_event: &mut dyn FnMut(Event),
) -> Result<Sampling> {
    let unread: Vec<String> = UNREAD
        .iter()
        .filter_map(|(key, neutral)| {
            let value = file[key].as_f64().filter(|value| value != neutral)?;
            Some(format!("{key} {value}"))
        })
        .collect();
    if !unread.is_empty() {
        on_event(Event::Warning(format!(
            "{FILE}: not supported and left out: {}",
            unread.join(", ")
        )));
    }
    let samples = file["do_sample"].as_bool().unwrap_or(false);
    let of_file = match samples && request.temperature != Some(0.0) {
        true => Defaults::read(file, place)?,
        false => Defaults::default(),
    };
    let sampling = Sampling {
        temperature: request
            .temperature
            .or(of_file.temperature)
            .unwrap_or(if samples { 1.0 } else { 0.0 }),
        top_p: request.top_p.or(of_file.top_p).unwrap_or(1.0),
        top_k: request.top_k.or(of_file.top_k).unwrap_or(0),
        seed: request.seed,
    };
    let mut told = Vec::new();
    if request.temperature.is_none() && samples {
        told.push(format!("temperature {}", sampling.temperature));
    }
    if let (None, Some(top_p)) = (request.top_p, of_file.top_p) {
        told.push(format!("top_p {top_p}"));
    }
    if let (None, Some(top_k)) = (request.top_k, of_file.top_k) {
        told.push(format!("top_k {top_k}"));
    }
    if !told.is_empty() {
        on_event(Event::Note(format!(
            "sampling with the model's own {} ({FILE}); --temperature 0 is greedy",
            told.join(", ")
        )));
    }
    Ok(sampling)
}

/// What the file has.
#[derive(Default)]
struct Defaults {
    temperature: Option<f64>,
    top_p: Option<f64>,
    top_k: Option<usize>,
}

impl Defaults {
    fn read(file: &Value, place: &str) -> Result<Self> {
        let number = |key: &str, wanted: &str, is_good: fn(f64) -> bool| match &file[key] {
            Value::Null => Ok(None),
            value => match value.as_f64().filter(|number| is_good(*number)) {
                Some(number) => Ok(Some(number)),
                None => Err(user_error(
                    format!("{place}: {FILE}: {key}: found {value}, wanted {wanted}"),
                    "mend the file, or give --temperature 0, which reads none of its sampling",
                )),
            },
        };
        let top_k = number("top_k", "a whole number from 0", |k| {
            k >= 0.0 && k.fract() == 0.0
        })?;
        Ok(Self {
            temperature: number("temperature", "a number from 0", |t| t >= 0.0)?,
            top_p: number("top_p", "a number above 0 and up to 1", |p| {
                p > 0.0 && p <= 1.0
            })?,
            top_k: top_k.map(|k| k as usize),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The sampling chosen, and what was told, by this generation_config.json.
    fn chosen(file: Option<&str>, request: SamplingRequest) -> (Result<Sampling>, Vec<Event>) {
        let file = file.map_or(Value::Null, |file| serde_json::from_str(file).unwrap());
        let mut events = Vec::new();
        let sampling = choose(&request, &file, "model", &mut |event| events.push(event));
        (sampling, events)
    }

    fn values(file: Option<&str>, request: SamplingRequest) -> (f64, f64, usize, usize) {
        let (sampling, events) = chosen(file, request);
        let Sampling {
            temperature,
            top_p,
            top_k,
            ..
        } = sampling.unwrap();
        (temperature, top_p, top_k, events.len())
    }

    const QWEN: &str = r#"{"do_sample": true, "temperature": 0.6, "top_k": 20, "top_p": 0.95, "eos_token_id": [1, 2]}"#;

    #[test]
    fn the_models_own_sampling_holds_where_it_samples_and_nothing_else_is_asked_for() {
        let none = SamplingRequest::default();
        assert_eq!(values(None, none), (0.0, 1.0, 0, 0));
        assert_eq!(values(Some(QWEN), none), (0.6, 0.95, 20, 1));
        let greedy = QWEN.replace("true", "false");
        assert_eq!(values(Some(&greedy), none), (0.0, 1.0, 0, 0));
        assert_eq!(values(Some("{\"top_p\": 0.9}"), none), (0.0, 1.0, 0, 0));
        assert_eq!(
            values(Some("{\"do_sample\": true}"), none),
            (1.0, 1.0, 0, 1)
        );
    }

    #[test]
    fn what_is_asked_for_wins() {
        let none = SamplingRequest::default();
        let at = |temperature| SamplingRequest {
            temperature: Some(temperature),
            ..none
        };
        assert_eq!(values(Some(QWEN), at(0.0)), (0.0, 1.0, 0, 0));
        assert_eq!(values(Some(QWEN), at(1.5)), (1.5, 0.95, 20, 1));
        assert_eq!(values(None, at(1.5)), (1.5, 1.0, 0, 0));
        let all = SamplingRequest {
            temperature: Some(0.7),
            top_p: Some(1.0),
            top_k: Some(0),
            seed: 3,
        };
        assert_eq!(values(Some(QWEN), all), (0.7, 1.0, 0, 0));
    }

    #[test]
    fn the_file_is_named_where_it_decides_is_not_followed_or_is_wrong() {
        let none = SamplingRequest::default();
        let told = |file: &str| chosen(Some(file), none).1;
        assert_eq!(
            told(QWEN),
            [Event::Note(
                "sampling with the model's own temperature 0.6, top_p 0.95, top_k 20 (generation_config.json); \
                 --temperature 0 is greedy"
                    .to_owned()
            )]
        );
        assert_eq!(
            told(r#"{"repetition_penalty": 1.1, "min_p": 0, "num_beams": 4}"#),
            [Event::Warning(
                "generation_config.json: not supported and left out: repetition_penalty 1.1, num_beams 4"
                    .to_owned()
            )]
        );
        for (wrong, wanted) in [
            (
                "\"top_k\": 1.5",
                "top_k: found 1.5, wanted a whole number from 0",
            ),
            (
                "\"top_p\": 0",
                "top_p: found 0, wanted a number above 0 and up to 1",
            ),
            (
                "\"temperature\": \"warm\"",
                "temperature: found \"warm\", wanted a number from 0",
            ),
        ] {
            let file = format!("{{\"do_sample\": true, {wrong}}}");
            let message = chosen(Some(&file), none).0.unwrap_err().to_string();
            assert!(message.ends_with(wanted), "{message}");
        }
    }
}
