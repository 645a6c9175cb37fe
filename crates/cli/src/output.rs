//! What people and programs see.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "the one place of the command that prints")]

use clap::ValueEnum;
use custody_rpc::status::{code_name, reason};
use serde_json::{Map, Value};

/// How results are shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// A table, or a list of fields.
    Table,
    /// JSON: an object or an array.
    Json,
}

pub(crate) fn line(text: impl std::fmt::Display) {
    println!("{text}");
}

pub(crate) fn note(text: impl std::fmt::Display) {
    eprintln!("{text}");
}

pub(crate) fn error(e: &anyhow::Error) {
    if let Some(status) = e.downcast_ref::<tonic::Status>() {
        eprintln!(
            "error: {} ({})",
            status.message(),
            format!("{} {}", code_name(status.code()), reason(status)).trim()
        );
    } else {
        eprintln!("error: {e:#}");
    }
}

fn cell(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(s) => s.clone(),
        Value::Array(items) => items.iter().map(cell).collect::<Vec<_>>().join(", "),
        Value::Object(fields) => {
            fields.iter().map(|(k, v)| format!("{k}={}", cell(v))).collect::<Vec<_>>().join(" ")
        }
        other => other.to_string(),
    }
}

/// Shows one thing.
pub(crate) fn one(format: Format, value: &Value) {
    match (format, value.as_object()) {
        (Format::Table, Some(fields)) => {
            let width = fields.keys().map(String::len).max().unwrap_or(0);
            for (name, value) in fields {
                println!("{name:width$}  {}", cell(value));
            }
        }
        _ => println!("{value}"),
    }
}

/// Shows many things, all with the same fields.
pub(crate) fn many(format: Format, values: Vec<Value>) {
    if format == Format::Json {
        println!("{}", Value::Array(values));
        return;
    }
    let rows: Vec<&Map<String, Value>> = values.iter().filter_map(Value::as_object).collect();
    let Some(first) = rows.first() else {
        eprintln!("none");
        return;
    };
    let names: Vec<&String> = first.keys().collect();
    let width = |name: &String| {
        rows.iter()
            .map(|r| r.get(name).map_or(0, |v| cell(v).chars().count()))
            .max()
            .unwrap_or(0)
            .max(name.len())
    };
    let widths: Vec<usize> = names.iter().map(|n| width(n)).collect();
    let print = |cells: Vec<String>| {
        let text: Vec<String> = cells.iter().zip(&widths).map(|(c, w)| format!("{c:w$}")).collect();
        println!("{}", text.join("  ").trim_end());
    };
    print(names.iter().map(|n| n.to_uppercase()).collect());
    for row in &rows {
        print(names.iter().map(|n| row.get(*n).map(cell).unwrap_or_default()).collect());
    }
}
