//! What was measured, beside its floor.

use serde_json::json;

/// All figures of a run.
#[derive(Debug, Default)]
pub(crate) struct Figures(Vec<Figure>);

#[derive(Debug)]
struct Figure {
    name: String,
    value: f64,
    unit: &'static str,
    /// The name and value of what this is compared with; no value where it is not installed.
    floor: Option<(String, Option<f64>)>,
}

impl Figures {
    /// Records and prints the median of `rounds`, beside the median of a floor measured in the same run.
    pub(crate) fn add(&mut self, name: &str, unit: &'static str, rounds: &[f64], floor: Option<(&str, &[f64])>) {
        let floor = floor.filter(|(_, rounds)| !rounds.is_empty());
        self.record(name, unit, rounds, floor.map(|(name, rounds)| (name, Some(median(rounds)))));
    }

    /// The same beside something that is not installed.
    pub(crate) fn add_alone(&mut self, name: &str, unit: &'static str, rounds: &[f64], not_installed: &str) {
        self.record(name, unit, rounds, Some((not_installed, None)));
    }

    fn record(&mut self, name: &str, unit: &'static str, rounds: &[f64], floor: Option<(&str, Option<f64>)>) {
        let value = median(rounds);
        let mut line = json!({ "figure": name, "value": value, "unit": unit, "rounds": rounds });
        if let Some((floor, floor_value)) = floor {
            line["floor"] = json!(floor_value);
            line["floor_is"] = json!(floor);
            line["ratio"] = json!(floor_value.map(|floor| value / floor));
        }
        println!("{line}");
        let floor = floor.map(|(name, value)| (name.to_owned(), value));
        self.0.push(Figure { name: name.to_owned(), value, unit, floor });
    }

    /// Prints all figures for people.
    pub(crate) fn table(&self) {
        eprintln!("\n{:<44} {:>12} {:<8} {:>12} {:>7}  beside", "figure", "value", "unit", "floor", "ratio");
        for Figure { name, value, unit, floor } in &self.0 {
            match floor {
                Some((floor_name, None)) => {
                    eprintln!("{name:<44} {value:>12.2} {unit:<8} {:>20}  {floor_name}", "not installed");
                }
                Some((floor_name, Some(floor))) => {
                    let ratio = value / floor;
                    eprintln!("{name:<44} {value:>12.2} {unit:<8} {floor:>12.2} {ratio:>7.2}  {floor_name}");
                }
                None => eprintln!("{name:<44} {value:>12.2} {unit:<8}"),
            }
        }
    }
}

/// The middle value; 0 of nothing.
pub(crate) fn median(values: &[f64]) -> f64 {
    percentile(values, 50)
}

/// The value below which this share of the values lies; 0 of nothing.
pub(crate) fn percentile(values: &[f64], percent: usize) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let index = (sorted.len() * percent / 100).min(sorted.len().saturating_sub(1));
    sorted.get(index).copied().unwrap_or_default()
}
