use super::table::{Column, Row, Table, Value};
use super::{Section, paragraph};
use crate::markup::escape;
use crate::text::grouped;
use crate::{EvaluationRecord, TokenRecord};

pub(super) fn tokens(evaluation: &EvaluationRecord) -> Option<Section> {
    let tokens = &evaluation.worst_tokens;
    if tokens.is_empty() {
        return None;
    }
    let context = |t: &TokenRecord| {
        let html = format!(
            "{}<mark>{}</mark>{}",
            escape(&visible(&t.before)),
            escape(&visible(&t.token)),
            escape(&visible(&t.after))
        );
        Value::html(
            html,
            format!("{}{}{}", t.before, t.token, t.after),
            "context",
        )
    };
    let token = |text: &str| {
        Value::html(
            format!("<span class=\"token\">{}</span>", escape(&visible(text))),
            text.to_owned(),
            "",
        )
    };
    let rows = tokens
        .iter()
        .map(|t| Row {
            id: None,
            values: vec![
                Value::number(t.kl),
                context(t),
                Value::number(t.probability_float),
                Value::number(t.probability),
                token(&t.top_float),
                token(&t.top),
                Value::whole(t.window),
                Value::whole(t.position),
            ],
        })
        .collect();
    let table = Table {
        id: "tokens",
        caption: "Tokens of largest KL",
        columns: vec![
            Column::number("kl", "KL"),
            Column::text("context", "token in its context"),
            Column::number("probability_float", "p float"),
            Column::number("probability", "p quantized"),
            Column::text("top_float", "top float"),
            Column::text("top", "top quantized"),
            Column::number("window", "window"),
            Column::number("position", "position"),
        ],
        rows,
    };
    let note = format!(
        "Where the two models' predictions differ most, of {} tokens of {}. The marked token was to be predicted from the text before it; p is \
         its probability, top the token found likeliest.",
        grouped(evaluation.tokens),
        evaluation.text
    );
    Some(Section {
        id: "tokens",
        name: "Worst tokens",
        html: paragraph(&note) + &table.render(),
    })
}

/// Line ends as a sign, so that a context stays one line.
fn visible(text: &str) -> String {
    text.replace("\r\n", "⏎")
        .replace(['\n', '\r'], "⏎")
        .replace('\t', "⇥")
}
