//! Structs with the fields of either family, as bytes.
//!
//! `bytemuck` derives nothing for a struct with a type parameter, since its padding depends on that. Here the two
//! families are all there are, and each struct is checked for both.

/// Declares a struct over [`crate::family::Family`] whose bytes may be written to a map, and read from one if each
/// field has a value that its type allows. `Bits` names the struct of the bytes as they are read.
macro_rules! per_family {
    (
        $(#[$meta:meta])*
        pub struct $name:ident<$F:ident>, $bits:ident: $repr:meta {
            $($(#[$doc:meta])* pub $field:ident: $type:ty,)+
        }
    ) => {
        $(#[$meta])*
        #[$repr]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name<$F: $crate::family::Family> {
            $($(#[$doc])* pub $field: $type,)+
        }

        #[doc = concat!("The bytes of [`", stringify!($name), "`], of any value.")]
        #[$repr]
        #[derive(Clone, Copy)]
        pub struct $bits<$F: $crate::family::Family> {
            $($field: <$type as bytemuck::CheckedBitPattern>::Bits,)+
        }

        impl<$F: $crate::family::Family> $name<$F> {
            const IS_WITHOUT_PADDING: () = {
                $(const { $crate::layout::bits::assert_plain::<$type>() };)+
                assert!(size_of::<Self>() == 0 $(+ size_of::<$type>())+);
            };
        }

        const _: [(); 2] =
            [$name::<$crate::family::V4>::IS_WITHOUT_PADDING, $name::<$crate::family::V6>::IS_WITHOUT_PADDING];

        // SAFETY: `IS_WITHOUT_PADDING` holds for both families: the fields are `NoUninit`, and nothing is between them.
        #[expect(unsafe_code, reason = "bytemuck derives it for no struct with a type parameter")]
        unsafe impl<$F: $crate::family::Family> bytemuck::NoUninit for $name<$F> {}

        // SAFETY: all bytes zero is a value of each field, for each is `AnyBitPattern`.
        #[expect(unsafe_code, reason = "as above")]
        unsafe impl<$F: $crate::family::Family> bytemuck::Zeroable for $bits<$F> {}

        // SAFETY: each field is `AnyBitPattern`, by the bound of `CheckedBitPattern::Bits`.
        #[expect(unsafe_code, reason = "as above")]
        unsafe impl<$F: $crate::family::Family> bytemuck::AnyBitPattern for $bits<$F> {}

        // SAFETY: the bits are laid out like the struct, by the same `repr` over fields that are laid out like its own.
        #[expect(unsafe_code, reason = "as above")]
        unsafe impl<$F: $crate::family::Family> bytemuck::CheckedBitPattern for $name<$F> {
            type Bits = $bits<$F>;

            #[inline]
            fn is_valid_bit_pattern(bits: &Self::Bits) -> bool {
                $(<$type as bytemuck::CheckedBitPattern>::is_valid_bit_pattern(&bits.$field))&&+
            }
        }
    };
}
pub(super) use per_family;

/// Compiles for types that a map may hold.
pub(super) const fn assert_plain<T: bytemuck::NoUninit + bytemuck::CheckedBitPattern>() {}
