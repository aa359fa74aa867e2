//! Samples → a table, JSON, a chart.

use serde_json::{Value, json};
use std::fmt::Write;

/// What is measured.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Measure {
    /// `latency`, `memory`, `throughput`, `io`, `containerd`.
    pub subject: &'static str,
    /// As the table names it.
    pub name: &'static str,
    /// ms, KiB, a second …
    pub unit: &'static str,
    /// Whether less is better.
    pub less: bool,
}

impl Measure {
    /// Something of which less is better.
    pub const fn less(subject: &'static str, name: &'static str, unit: &'static str) -> Self {
        Self { subject, name, unit, less: true }
    }

    /// Something of which more is better.
    pub const fn more(subject: &'static str, name: &'static str, unit: &'static str) -> Self {
        Self { subject, name, unit, less: false }
    }
}

struct Row {
    measure: Measure,
    /// Of each shim.
    samples: Vec<Vec<f64>>,
}

/// All samples of a run.
pub struct Report {
    labels: Vec<String>,
    rows: Vec<Row>,
    printed: usize,
}

/// The value below which this part of the samples lies.
fn quantile(samples: &[f64], part: f64) -> Option<f64> {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let last = sorted.len().checked_sub(1)?;
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "an index between 0 and last"
    )]
    let index = (last as f64 * part).round() as usize;
    sorted.get(index).copied()
}

impl Report {
    /// For shims of these names; the first is compared with each other one.
    pub fn new(labels: Vec<String>) -> Self {
        Self { labels, rows: Vec::new(), printed: 0 }
    }

    /// Takes a sample.
    pub fn add(&mut self, measure: Measure, shim: usize, value: f64) {
        let at = self.rows.iter().position(|row| row.measure == measure).unwrap_or_else(|| {
            self.rows.push(Row { measure, samples: vec![Vec::new(); self.labels.len()] });
            self.rows.len() - 1
        });
        self.rows[at].samples[shim].push(value);
    }

    /// The head of the table.
    pub fn print_head(&self) {
        let mut line = format!("{:11} {:34} {:>9}", "", "median (p99)", "unit");
        for label in &self.labels {
            write!(line, " {label:>22}").unwrap_or_default();
        }
        for label in self.labels.iter().skip(1) {
            let ratio = format!("{} / {label}", self.labels[0]);
            write!(line, " {ratio:>12}").unwrap_or_default();
        }
        println!("{line}");
    }

    /// What has come since the last time.
    pub fn print_news(&mut self) {
        for row in &self.rows[self.printed..] {
            let Measure { subject, name, unit, .. } = row.measure;
            let mut line = format!("{subject:11} {name:34} {unit:>9}");
            let medians: Vec<Option<f64>> =
                row.samples.iter().map(|samples| quantile(samples, 0.5)).collect();
            for (samples, median) in row.samples.iter().zip(&medians) {
                let text = match (median, samples.len()) {
                    (None, _) => "-".to_owned(),
                    (Some(median), ..10) => number(*median),
                    (Some(median), _) => {
                        format!(
                            "{} ({})",
                            number(*median),
                            number(quantile(samples, 0.99).unwrap_or(0.0))
                        )
                    }
                };
                write!(line, " {text:>22}").unwrap_or_default();
            }
            for other in medians.iter().skip(1) {
                let ratio = match (medians[0], other) {
                    (Some(first), Some(other)) if *other > 0.0 => format!("{:.2}", first / other),
                    _ => "-".to_owned(),
                };
                write!(line, " {ratio:>12}").unwrap_or_default();
            }
            println!("{line}");
        }
        self.printed = self.rows.len();
    }

    /// The same for programs: for each measure, of each shim, median, p99 and number of samples.
    pub fn json(&self) -> Value {
        let rows: Vec<Value> = self
            .rows
            .iter()
            .map(|row| {
                let shims: serde_json::Map<String, Value> = self
                    .labels
                    .iter()
                    .zip(&row.samples)
                    .map(|(label, samples)| {
                        let figures = json!({
                            "median": quantile(samples, 0.5), "p99": quantile(samples, 0.99), "samples": samples.len(),
                        });
                        (label.clone(), figures)
                    })
                    .collect();
                let Measure { subject, name, unit, less } = row.measure;
                json!({"subject": subject, "measure": name, "unit": unit, "less_is_better": less, "shims": shims})
            })
            .collect();
        json!({"shims": self.labels, "measures": rows})
    }
}

fn number(value: f64) -> String {
    match value.abs() {
        100.0.. => format!("{value:.0}"),
        10.0.. => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

/// An SVG of a report's JSON: a pair of bars for each measure, cleat's as a part of the other's.
pub fn chart(report: &Value) -> String {
    const WIDTH: f64 = 760.0;
    const LEFT: f64 = 270.0;
    const ROW: f64 = 26.0;
    let labels: Vec<&str> =
        report["shims"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let [first, second, ..] = labels[..] else { return String::new() };
    let rows: Vec<(String, f64, f64, bool)> = report["measures"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|row| {
            let of =
                |label: &str| row["shims"][label]["median"].as_f64().filter(|value| *value > 0.0);
            let name = match (row["measure"].as_str()?, row["unit"].as_str()?) {
                (measure, "") => measure.to_owned(),
                (measure, unit) => format!("{measure} ({unit})"),
            };
            Some((name, of(first)?, of(second)?, row["less_is_better"].as_bool()?))
        })
        .collect();
    let height = 70.0 + ROW * rows.iter().map(|_| 1.0).sum::<f64>();
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n\
         <text x=\"12\" y=\"22\" font-size=\"15\" font-weight=\"bold\">{first} beside {second}</text>\n\
         <text x=\"12\" y=\"42\" fill=\"#555555\">Each bar: {first} divided by {second}. Left of the line is less. Green is better, orange is worse.</text>\n"
    );
    let scale = |ratio: f64| (ratio.min(3.0) / 3.0) * (WIDTH - LEFT - 150.0);
    let mut y = 58.0;
    for (name, ours, theirs, less) in &rows {
        let ratio = ours / theirs;
        let good = if *less { ratio <= 1.0 } else { ratio >= 1.0 };
        let colour = if good { "#2e8b57" } else { "#d2691e" };
        let text = y + 13.0;
        writeln!(
            svg,
            "<text x=\"{}\" y=\"{text}\" text-anchor=\"end\">{name}</text>\
             <rect x=\"{LEFT}\" y=\"{y}\" width=\"{:.1}\" height=\"17\" fill=\"{colour}\"/>\
             <text x=\"{:.1}\" y=\"{text}\">{ratio:.2}  <tspan fill=\"#777777\">{} | {}</tspan></text>",
            LEFT - 8.0,
            scale(ratio).max(1.0),
            LEFT + scale(ratio).max(1.0) + 6.0,
            number(*ours),
            number(*theirs),
        )
        .unwrap_or_default();
        y += ROW;
    }
    let line = LEFT + scale(1.0);
    writeln!(
        svg,
        "<line x1=\"{line:.1}\" y1=\"54\" x2=\"{line:.1}\" y2=\"{y}\" stroke=\"#333333\" stroke-dasharray=\"4 3\"/>\n</svg>"
    )
    .unwrap_or_default();
    svg
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles() {
        let samples: Vec<f64> = (1..=101).rev().map(f64::from).collect();
        assert_eq!((quantile(&samples, 0.5), quantile(&samples, 0.99)), (Some(51.0), Some(100.0)));
        assert_eq!(quantile(&[], 0.5), None);
    }

    #[test]
    fn the_ratio_is_the_firsts_by_the_others() {
        let mut report = Report::new(vec!["cleat".to_owned(), "go".to_owned()]);
        let start = Measure::less("latency", "start", "ms");
        report.add(start, 0, 2.0);
        report.add(start, 1, 8.0);
        let json = report.json();
        assert_eq!(json["measures"][0]["shims"]["go"]["median"], 8.0);
        let svg = chart(&json);
        assert!(svg.contains(">0.25 "), "{svg}");
    }
}
