//! The form of a step: check, apply, verify.

use super::journal::Journal;
use crate::summary::Failure;

/// What a check found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Check {
    /// Everything is as it shall be, as one line says.
    Done(String),
    /// Something is to be done, as one line says.
    Needed(String),
}

/// What came of something that a step went on without.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Later {
    /// There is nothing to wait for.
    Nothing,
    /// It has not come yet.
    Waiting,
    /// It came, as one line says: the step's warnings hold no longer.
    Came(String),
}

/// One step of the first-boot service. Running it twice changes nothing; cutting power at any moment and starting
/// again ends in the same state.
pub(crate) trait Step {
    /// Its name, as in the journal and on the console.
    fn name(&self) -> &'static str;

    /// Compares the machine with the profile. Changes nothing.
    ///
    /// # Errors
    /// When the machine is not one that the profile can be applied to.
    fn check(&mut self, journal: &Journal) -> Result<Check, Failure>;

    /// Does what [`Self::check`] found needed. `progress` takes lines for the console.
    ///
    /// # Errors
    /// When it cannot be done.
    fn apply(&mut self, journal: &mut Journal, progress: &mut dyn FnMut(&str)) -> Result<(), Failure>;

    /// Whether everything is as it shall be now; one line of result.
    ///
    /// # Errors
    /// When it is not.
    fn verify(&mut self, journal: &Journal) -> Result<String, Failure>;

    /// What is not as it should be although the step is done: lines for the console and the status. Asked once the
    /// step is done.
    fn warnings(&self) -> Vec<String> {
        Vec::new()
    }

    /// Asked every few seconds after the last step, until it answers otherwise than [`Later::Waiting`].
    fn later(&mut self) -> Later {
        Later::Nothing
    }
}
