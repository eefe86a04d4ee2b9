//! Why a test failed, or why a look did not see yet what it waits for: a text for people, and nothing else.

use std::error::Error;
use std::fmt;

/// The text.
#[derive(Clone, Debug)]
pub struct Failure(pub String);

/// What nearly everything here returns.
pub type Result<T = ()> = std::result::Result<T, Failure>;

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<E: Error> From<E> for Failure {
    fn from(error: E) -> Self {
        Failure(error.to_string())
    }
}

/// Returns a [`Failure`] with a formatted text.
#[macro_export]
macro_rules! fail {
    ($($text:tt)*) => {
        return Err($crate::failure::Failure(format!($($text)*)))
    };
}

/// Fails with a formatted text unless the condition holds.
#[macro_export]
macro_rules! ensure {
    ($condition:expr, $($text:tt)*) => {
        if !$condition {
            $crate::fail!($($text)*);
        }
    };
}
