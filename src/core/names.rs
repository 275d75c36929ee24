//! Names that must not be mixed: an endpoint's number, its URL as configured, and a model's name
//! as tracked (which may differ from the name a client asked for).

use core::fmt;

use super::sync::Arc;

/// An endpoint's number: dense, given at its first registration, never given to another URL while
/// the process lives, so that a reload keeps its counts.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct EndpointId(pub(super) u32);

impl EndpointId {
    /// The number as an index.
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

macro_rules! name {
    ($(#[$doc:meta])* $type:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        pub struct $type(Arc<str>);

        impl $type {
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl From<&str> for $type {
            fn from(name: &str) -> Self {
                $type(Arc::from(name))
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

name! {
    /// An endpoint's URL as the configuration spells it: what users see in `/api/usage` and what
    /// token rows are stored under. Cheap to clone.
    EndpointName
}

name! {
    /// A model as slots and tokens are counted: the endpoint's own name for it, for a llama-server
    /// without owner and quantisation. Cheap to clone.
    ModelName
}
