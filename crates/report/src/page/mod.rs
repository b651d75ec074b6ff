//! Pages as one HTML file each: style and script inside, nothing fetched.

mod bits;
mod codes;
mod comparison;
mod cost;
mod gain;
mod kinds;
mod loss;
mod record;
mod run;
mod sweep;
mod table;
mod tokens;
mod yaml;

pub use comparison::comparison_page;
pub(crate) use record::export_folder;
pub use run::run_page;
pub use sweep::sweep_page;

use crate::markup::escape;

/// The dark colours are taken where they are chosen, and where the system has them and light is not chosen.
const STYLE: &str = concat!(
    include_str!("style.css"),
    ":root[data-theme=\"dark\"] {\n",
    include_str!("dark.css"),
    "}\n@media (prefers-color-scheme: dark) {\n:root:not([data-theme=\"light\"]) {\n",
    include_str!("dark.css"),
    "}\n}\n"
);
const SCRIPT: &str = include_str!("script.js");

/// A section with its name in the contents.
struct Section {
    id: &'static str,
    name: &'static str,
    html: String,
}

/// The page around its content. The policy in its head has the browser refuse whatever would go to the network.
fn document(title: &str, head: &str, sections: &[Section], foot: &str) -> String {
    let mut nav = String::new();
    let mut main = String::new();
    for Section { id, name, html } in sections {
        nav += &format!("<a href=\"#{id}\">{name}</a>\n");
        main += &format!(
            "<section id=\"{id}\" aria-labelledby=\"{id}-h\">\n<h2 id=\"{id}-h\">{name}</h2>\n{html}</section>\n"
        );
    }
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\" />\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\" />\n\
         <meta name=\"color-scheme\" content=\"light dark\" />\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; \
         script-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'\" />\n\
         <link rel=\"icon\" href=\"data:,\" />\n<title>{}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n\
         <header>\n<div class=\"top\"><span>halfbyte</span>\
         <button type=\"button\" id=\"theme\" class=\"needs-script\">Theme: system</button></div>\n{head}\
         <nav aria-label=\"Contents\">\n{nav}</nav>\n</header>\n<main>\n{main}</main>\n\
         <footer>{foot}</footer>\n<script>\n{SCRIPT}</script>\n</body>\n</html>\n",
        escape(title)
    )
}

/// A chart with what it shows and how to read it.
fn figure(name: &str, caption: &str, chart: &str) -> String {
    format!(
        "<figure><figcaption><strong>{}</strong>{}</figcaption>\n{chart}</figure>\n",
        escape(name),
        escape(caption)
    )
}

/// Figures side by side where there is room.
fn pair(figures: &str) -> String {
    format!("<div class=\"pair\">\n{figures}</div>\n")
}

fn paragraph(text: &str) -> String {
    format!("<p>{}</p>\n", escape(text))
}

/// What must be seen before anything else.
fn warnings(list: &[String]) -> String {
    if list.is_empty() {
        return "<p class=\"quiet\">No warnings.</p>\n".to_owned();
    }
    let items: String = list
        .iter()
        .map(|w| format!("<li>{}</li>\n", escape(w)))
        .collect();
    let noun = if list.len() == 1 {
        "warning"
    } else {
        "warnings"
    };
    format!(
        "<div class=\"warnings\" role=\"region\" aria-labelledby=\"warnings-h\"><h2 id=\"warnings-h\">{} {noun}</h2>\n\
         <ul tabindex=\"0\">\n{items}</ul></div>\n",
        list.len()
    )
}

/// A figure of the run: name, value, what stands below it.
fn tiles(figures: &[(&str, String, String)]) -> String {
    let mut out = "<dl class=\"figures\">\n".to_owned();
    for (name, value, below) in figures {
        out += &format!(
            "<div><dt>{}</dt><dd>{}<small>{}</small></dd></div>\n",
            escape(name),
            escape(value),
            escape(below)
        );
    }
    out + "</dl>\n"
}
