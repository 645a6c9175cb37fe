//! Generated wire types and descriptors.
