//! Why a packet took the path it took.
