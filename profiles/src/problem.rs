//! Everything that is wrong with a document, at once.

use std::fmt;

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Where in the document, such as `dataDisks[0].select.size`; empty for the document as a whole.
    pub path: String,
    /// What is wrong. Where the document itself cannot be read, with its line and column.
    pub message: String,
}

/// All that is wrong with a document; never empty.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct Problems(Vec<Problem>);

impl Problems {
    /// The problems, in the document's order.
    #[must_use]
    pub fn list(&self) -> &[Problem] {
        &self.0
    }
}

impl From<serde_json::Error> for Problems {
    fn from(error: serde_json::Error) -> Self {
        Self(vec![Problem { path: String::new(), message: error.to_string() }])
    }
}

/// One line for each problem.
impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, Problem { path, message }) in self.0.iter().enumerate() {
            let line = if index > 0 { "\n" } else { "" };
            let separator = if path.is_empty() { "" } else { ": " };
            write!(f, "{line}{path}{separator}{message}")?;
        }
        Ok(())
    }
}

/// Where problems are gathered while a document is looked through.
#[derive(Debug, Default)]
pub(crate) struct Findings(Vec<Problem>);

impl Findings {
    /// Notes a problem.
    pub(crate) fn add(&mut self, path: impl Into<String>, message: impl fmt::Display) {
        self.0.push(Problem { path: path.into(), message: message.to_string() });
    }

    /// The value of a result, or `None` with its error noted.
    pub(crate) fn take<T, E: fmt::Display>(&mut self, path: &str, result: Result<T, E>) -> Option<T> {
        result.map_err(|error| self.add(path, error)).ok()
    }

    /// What was noted.
    #[cfg(feature = "language")]
    pub(crate) fn into_list(self) -> Vec<Problem> {
        self.0
    }

    /// The value, unless a problem was noted. A value that is missing has a problem noted for it.
    pub(crate) fn settle<T>(self, value: Option<T>) -> Result<T, Problems> {
        match value {
            Some(value) if self.0.is_empty() => Ok(value),
            Some(_) | None => Err(Problems(self.0)),
        }
    }
}
