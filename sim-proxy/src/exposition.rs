//! The Prometheus text format, version 0.0.4: families of samples.

use std::fmt::{Display, Write};

/// What a family's samples are.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Kind {
    Counter,
    Gauge,
    Histogram,
}

/// A page in the making.
#[derive(Debug)]
pub(crate) struct Page {
    text: String,
    /// Labels that every sample carries.
    common: String,
    family: &'static str,
}

impl Page {
    /// `common`: labels of every sample. Label values must need no escaping; names of
    /// [`sim_core::name`] and numbers don't.
    pub(crate) fn new(common: &[(&str, &dyn Display)]) -> Self {
        let mut page = Self {
            text: String::new(),
            common: String::new(),
            family: "",
        };
        page.common = join(common);
        page
    }

    /// Starts a family; the samples that follow are its.
    pub(crate) fn family(&mut self, name: &'static str, kind: Kind, help: &str) -> &mut Self {
        let kind = match kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        };
        self.family = name;
        self.write(format_args!("# HELP {name} {help}\n# TYPE {name} {kind}\n"));
        self
    }

    /// One sample of the present family.
    pub(crate) fn sample(
        &mut self,
        labels: &[(&str, &dyn Display)],
        value: impl Display,
    ) -> &mut Self {
        self.suffixed("", labels, value)
    }

    /// One sample of the present family with `suffix` to its name, as histograms have.
    pub(crate) fn suffixed(
        &mut self,
        suffix: &str,
        labels: &[(&str, &dyn Display)],
        value: impl Display,
    ) -> &mut Self {
        let (family, own) = (self.family, join(labels));
        let comma = if own.is_empty() || self.common.is_empty() {
            ""
        } else {
            ","
        };
        let common = std::mem::take(&mut self.common);
        self.write(format_args!(
            "{family}{suffix}{{{common}{comma}{own}}} {value}\n"
        ));
        self.common = common;
        self
    }

    fn write(&mut self, what: std::fmt::Arguments<'_>) {
        // A string takes whatever is written.
        self.text.write_fmt(what).unwrap_or_default();
    }

    pub(crate) fn finish(self) -> String {
        self.text
    }
}

fn join(labels: &[(&str, &dyn Display)]) -> String {
    labels
        .iter()
        .map(|(name, value)| format!("{name}=\"{value}\""))
        .collect::<Vec<_>>()
        .join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_family_reads_as_the_format_says() {
        let mut page = Page::new(&[("workload", &"web")]);
        page.family("x_total", Kind::Counter, "Things.")
            .sample(&[("kind", &"a")], 3)
            .sample(&[], 4);
        assert_eq!(
            page.finish(),
            "# HELP x_total Things.\n# TYPE x_total counter\n\
             x_total{workload=\"web\",kind=\"a\"} 3\nx_total{workload=\"web\"} 4\n"
        );
    }
}
