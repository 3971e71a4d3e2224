//! Codes: enumerations whose values travel as one stable byte.
//!
//! A plain postcard enum makes a whole frame unreadable once the peer knows a variant more. A code
//! turns a value it does not know into its fallback instead.

/// Declares an enumeration that serialises as its byte and reads unknown bytes as `fallback`.
macro_rules! code {
    (
        $(#[$meta:meta])*
        $name:ident, fallback $fallback:ident {
            $($(#[$doc:meta])* $variant:ident = $byte:literal,)*
        }
    ) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
        #[serde(from = "u8", into = "u8")]
        #[non_exhaustive]
        #[repr(u8)]
        pub enum $name {
            $($(#[$doc])* $variant = $byte,)*
        }

        impl $name {
            /// Every value, in the order of its byte.
            pub const ALL: &[Self] = &[$(Self::$variant),*];
        }

        impl From<u8> for $name {
            fn from(byte: u8) -> Self {
                match byte {
                    $($byte => Self::$variant,)*
                    _ => Self::$fallback,
                }
            }
        }

        impl From<$name> for u8 {
            fn from(value: $name) -> Self {
                value as Self
            }
        }
    };
}

pub(crate) use code;
