use crate::markup::{escape, short};

/// A table that sorts and goes out as CSV; the first cell of a row names it.
pub(crate) struct Table<'a> {
    pub(crate) id: &'a str,
    pub(crate) caption: &'a str,
    pub(crate) columns: Vec<Column>,
    pub(crate) rows: Vec<Row>,
}

/// One column.
#[derive(Clone, Debug)]
pub(crate) struct Column {
    /// Name in the CSV.
    pub(crate) key: String,
    /// Name on the page.
    pub(crate) label: String,
    /// Sorted by number, set to the right.
    pub(crate) number: bool,
}

/// One row; marks of charts find it by its id.
pub(crate) struct Row {
    pub(crate) id: Option<String>,
    pub(crate) values: Vec<Value>,
}

/// One cell.
#[derive(Clone, Debug)]
pub(crate) struct Value {
    html: String,
    /// What is sorted by and written to CSV, where it is not the text shown.
    raw: Option<String>,
    class: &'static str,
}

impl Column {
    pub(crate) fn text(key: &str, label: &str) -> Self {
        Self {
            key: key.to_owned(),
            label: label.to_owned(),
            number: false,
        }
    }

    pub(crate) fn number(key: &str, label: &str) -> Self {
        Self {
            number: true,
            ..Self::text(key, label)
        }
    }
}

impl Value {
    pub(crate) fn text(text: &str) -> Self {
        Self {
            html: escape(text),
            raw: None,
            class: "",
        }
    }

    /// Shown as a person reads it, kept in full.
    pub(crate) fn shown(text: &str, raw: String) -> Self {
        Self {
            html: escape(text),
            raw: Some(raw),
            class: "",
        }
    }

    pub(crate) fn number(value: f64) -> Self {
        if value.is_finite() {
            Self::shown(&short(value), value.to_string())
        } else {
            Self::shown("no number", String::new())
        }
    }

    pub(crate) fn whole(value: usize) -> Self {
        Self::text(&value.to_string())
    }

    pub(crate) fn maybe(value: Option<f64>) -> Self {
        value.map_or_else(|| Self::text(""), Self::number)
    }

    /// Shown alone: what is sorted by and written to CSV has no more digits.
    pub(crate) fn without_raw(self) -> Self {
        Self { raw: None, ..self }
    }

    /// The cell's content.
    pub(crate) fn inner_html(&self) -> &str {
        &self.html
    }

    /// `html` must hold no text that was not escaped.
    pub(crate) fn html(html: String, raw: String, class: &'static str) -> Self {
        Self {
            html,
            raw: Some(raw),
            class,
        }
    }
}

impl Table<'_> {
    pub(crate) fn render(&self) -> String {
        let id = self.id;
        let mut out = format!(
            "<div class=\"table-head\"><h3 id=\"{id}-name\">{}</h3><button type=\"button\" class=\"needs-script\" id=\"{id}-csv\">CSV</button></div>\n\
             <div class=\"scroll names\" role=\"region\" aria-labelledby=\"{id}-name\" tabindex=\"0\">\n\
             <table class=\"data\" id=\"{id}\" aria-labelledby=\"{id}-name\"><thead><tr>",
            escape(self.caption)
        );
        for column in &self.columns {
            let class = if column.number { " class=\"n\"" } else { "" };
            out += &format!(
                "<th scope=\"col\"{class} data-key=\"{}\">{}</th>",
                escape(&column.key),
                escape(&column.label)
            );
        }
        out += "</tr></thead><tbody>\n";
        for row in &self.rows {
            let id = row
                .id
                .as_ref()
                .map_or_else(String::new, |id| format!(" id=\"{}\"", escape(id)));
            out += &format!("<tr{id}>");
            for (index, (value, column)) in row.values.iter().zip(&self.columns).enumerate() {
                let (name, scope) = if index == 0 {
                    ("th", " scope=\"row\"")
                } else {
                    ("td", "")
                };
                let class = match (column.number, value.class) {
                    (true, _) => " class=\"n\"".to_owned(),
                    (false, "") => String::new(),
                    (false, class) => format!(" class=\"{class}\""),
                };
                let raw = value
                    .raw
                    .as_ref()
                    .map_or_else(String::new, |raw| format!(" data-v=\"{}\"", escape(raw)));
                out += &format!("<{name}{scope}{class}{raw}>{}</{name}>", value.html);
            }
            out += "</tr>\n";
        }
        out + "</tbody></table></div>\n"
    }
}

/// Names and values in two columns.
pub(crate) fn facts(rows: &[(&str, String)]) -> String {
    let mut out = "<div class=\"scroll\"><table class=\"facts\"><tbody>\n".to_owned();
    for (name, value) in rows {
        out += &format!(
            "<tr><th scope=\"row\">{}</th><td>{}</td></tr>\n",
            escape(name),
            escape(value)
        );
    }
    out + "</tbody></table></div>\n"
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::markup::tests::elements;

    #[test]
    fn a_table_keeps_raw_values_beside_those_shown_and_escapes_all() {
        let table = Table {
            id: "t",
            caption: "a & b",
            columns: vec![
                Column::text("linear", "linear"),
                Column::number("relative_loss", "loss"),
            ],
            rows: vec![
                Row {
                    id: Some("l0".into()),
                    values: vec![Value::text("<script>"), Value::number(0.000_123_456)],
                },
                Row {
                    id: None,
                    values: vec![Value::text("\"q\""), Value::maybe(None)],
                },
                Row {
                    id: None,
                    values: vec![Value::text("x"), Value::number(f64::NAN)],
                },
            ],
        };
        let html = table.render();
        assert_eq!(
            elements(&html)
                .iter()
                .filter(|tag| tag.starts_with("tr"))
                .count(),
            4
        );
        for part in [
            "<th scope=\"row\">&lt;script&gt;</th><td class=\"n\" data-v=\"0.000123456\">1.23e-4</td>",
            "<th scope=\"row\">&quot;q&quot;</th><td class=\"n\"></td>",
            "<td class=\"n\" data-v=\"\">no number</td>",
            "data-key=\"relative_loss\"",
            "a &amp; b",
        ] {
            assert!(html.contains(part), "{part}\n{html}");
        }
    }
}
