//! The Merkle tree over the records (RFC 6962, section 2.1; RFC 9162, section 2.1): what proves that a record is in the trail,
//! and that a later trail goes on where an earlier one ended.

use aws_lc_rs::digest::{Context, SHA256};
use std::{fs::File, io, os::unix::fs::FileExt as _, path::Path};

/// A hash of the tree.
pub type Hash = [u8; 32];

fn sha256(parts: &[&[u8]]) -> Hash {
    let mut context = Context::new(&SHA256);
    parts.iter().for_each(|part| context.update(part));
    context.finish().as_ref().first_chunk().copied().unwrap_or_default()
}

/// The hash of a leaf: of a record's bytes.
#[must_use]
pub fn leaf_hash(record: &[u8]) -> Hash {
    sha256(&[&[0], record])
}

fn node_hash(left: &Hash, right: &Hash) -> Hash {
    sha256(&[&[1], left, right])
}

/// The right edge of a tree: what is needed to go on, and the root.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Edge {
    size: u64,
    /// The roots of the complete subtrees, largest first.
    roots: Vec<Hash>,
}

impl Edge {
    /// Of its parts; none where they are not so many as the size wants.
    pub(crate) fn of(size: u64, roots: Vec<Hash>) -> Option<Self> {
        (roots.len() == size.count_ones() as usize).then_some(Self { size, roots })
    }

    /// The roots of the complete subtrees, largest first.
    pub(crate) fn roots(&self) -> &[Hash] {
        &self.roots
    }

    /// How many leaves there are.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Adds a leaf; gives each hash that becomes final, in the order in which [`Nodes`] has them.
    pub fn push(&mut self, leaf: Hash, mut made: impl FnMut(&Hash)) {
        let mut hash = leaf;
        made(&hash);
        let mut before = self.size;
        while before & 1 == 1 {
            let Some(left) = self.roots.pop() else { break };
            hash = node_hash(&left, &hash);
            made(&hash);
            before >>= 1;
        }
        self.roots.push(hash);
        self.size += 1;
    }

    /// The root; of no leaves, the hash of nothing.
    #[must_use]
    pub fn root(&self) -> Hash {
        let mut from_right = self.roots.iter().rev();
        let Some(last) = from_right.next() else { return sha256(&[]) };
        from_right.fold(*last, |right, left| node_hash(left, &right))
    }
}

/// Every hash that is final, in the order in which they became so: a leaf, and then those that it completes.
pub trait Nodes {
    /// The hash at a place of that order.
    ///
    /// # Errors
    /// It is not there.
    fn at(&self, place: u64) -> io::Result<Hash>;
}

/// Where the hash of the complete subtree `n` of 2^`level` leaves stands.
fn place(level: u32, n: u64) -> u64 {
    // Its last leaf, and the hashes before that: one for each leaf, one for each pair, and so on.
    let mut n = ((n + 1) << level) - 1;
    let mut place = u64::from(level);
    while n > 0 {
        place += n;
        n >>= 1;
    }
    place
}

/// How many hashes are final with `size` leaves.
pub(crate) fn final_hashes(size: u64) -> u64 {
    2 * size - u64::from(size.count_ones())
}

/// The largest power of two below `n`, which is at least 2.
fn split(n: u64) -> u64 {
    1 << (63 - (n - 1).leading_zeros())
}

/// The root of leaves `from` to `to`, which are a subtree as RFC 6962 cuts them.
fn range<N: Nodes + ?Sized>(nodes: &N, from: u64, to: u64) -> io::Result<Hash> {
    let n = to - from;
    if n.is_power_of_two() {
        let level = n.trailing_zeros();
        return nodes.at(place(level, from >> level));
    }
    let k = split(n);
    Ok(node_hash(&range(nodes, from, from + k)?, &range(nodes, from + k, to)?))
}

/// The right edge of a tree of `size` leaves.
pub(crate) fn edge<N: Nodes + ?Sized>(nodes: &N, size: u64) -> io::Result<Edge> {
    let roots = edge_places(size).map(|place| nodes.at(place)).collect::<io::Result<_>>()?;
    Ok(Edge { size, roots })
}

/// Where the roots of the complete subtrees stand, largest first.
fn edge_places(size: u64) -> impl Iterator<Item = u64> {
    let mut from = 0;
    (0..64).rev().filter(move |level| size >> level & 1 == 1).map(move |level| {
        let place = place(level, from >> level);
        from += 1 << level;
        place
    })
}

fn none(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, what)
}

/// What proves that leaf `index` is in the tree of `size` leaves (RFC 6962, section 2.1.1).
///
/// # Errors
/// There is no such leaf, or a hash cannot be read.
pub fn inclusion_proof<N: Nodes + ?Sized>(nodes: &N, index: u64, size: u64) -> io::Result<Vec<Hash>> {
    if index >= size {
        return Err(none("the tree has no such leaf"));
    }
    let (mut from, mut to, mut proof) = (0, size, Vec::new());
    while to - from > 1 {
        let middle = from + split(to - from);
        if index < middle {
            proof.push(range(nodes, middle, to)?);
            to = middle;
        } else {
            proof.push(range(nodes, from, middle)?);
            from = middle;
        }
    }
    proof.reverse();
    Ok(proof)
}

/// What proves that the tree of `size` leaves goes on where that of `before` ended (RFC 6962, section 2.1.2).
///
/// # Errors
/// `before` is not 1 to `size`, or a hash cannot be read.
pub fn consistency_proof<N: Nodes + ?Sized>(nodes: &N, before: u64, size: u64) -> io::Result<Vec<Hash>> {
    if before == 0 || before > size {
        return Err(none("the earlier tree has at least one leaf, and no more than the later one"));
    }
    let (mut from, mut to, mut proof) = (0, size, Vec::new());
    while to > before {
        let middle = from + split(to - from);
        if before <= middle {
            proof.push(range(nodes, middle, to)?);
            to = middle;
        } else {
            proof.push(range(nodes, from, middle)?);
            from = middle;
        }
    }
    if from > 0 {
        proof.push(range(nodes, from, to)?);
    }
    proof.reverse();
    Ok(proof)
}

/// The root that a proof of inclusion leads to (RFC 9162, section 2.1.3.2); none where it is no proof for such a leaf.
#[must_use]
pub fn root_by_inclusion(leaf: &Hash, index: u64, size: u64, proof: &[Hash]) -> Option<Hash> {
    let (mut at, mut last) = (index, size.checked_sub(1)?);
    if at > last {
        return None;
    }
    let mut hash = *leaf;
    for other in proof {
        if last == 0 {
            return None;
        }
        if at & 1 == 1 || at == last {
            hash = node_hash(other, &hash);
            while at & 1 == 0 && at != 0 {
                at >>= 1;
                last >>= 1;
            }
        } else {
            hash = node_hash(&hash, other);
        }
        at >>= 1;
        last >>= 1;
    }
    (last == 0).then_some(hash)
}

/// Whether a proof of consistency leads from one root to another (RFC 9162, section 2.1.4.2).
#[must_use]
pub fn is_consistent(before: (u64, &Hash), after: (u64, &Hash), proof: &[Hash]) -> bool {
    let ((first, first_root), (second, second_root)) = (before, after);
    if first == 0 || first > second {
        return false;
    }
    if first == second {
        return proof.is_empty() && first_root == second_root;
    }
    let mut proof = proof.iter();
    // Where the earlier tree is complete, its root begins the path.
    let start = if first.is_power_of_two() { Some(first_root) } else { proof.next() };
    let Some(start) = start else { return false };
    let (mut at, mut last) = (first - 1, second - 1);
    while at & 1 == 1 {
        at >>= 1;
        last >>= 1;
    }
    let (mut to_first, mut to_second) = (*start, *start);
    for other in proof {
        if last == 0 {
            return false;
        }
        if at & 1 == 1 || at == last {
            to_first = node_hash(other, &to_first);
            to_second = node_hash(other, &to_second);
            while at & 1 == 0 && at != 0 {
                at >>= 1;
                last >>= 1;
            }
        } else {
            to_second = node_hash(&to_second, other);
        }
        at >>= 1;
        last >>= 1;
    }
    last == 0 && to_first == *first_root && to_second == *second_root
}

/// The hashes in a file: what is in the records, kept so that proofs need not read them all. It can always be made anew.
pub(crate) struct NodeFile(pub(crate) File);

impl Nodes for NodeFile {
    fn at(&self, place: u64) -> io::Result<Hash> {
        let mut hash = [0; 32];
        self.0.read_exact_at(&mut hash, place * 32)?;
        // Of a record that is gone, in a file that was lost after it.
        if hash == [0; 32] { Err(io::ErrorKind::NotFound.into()) } else { Ok(hash) }
    }
}

impl NodeFile {
    /// For reading alone.
    pub(crate) fn read(path: &Path) -> io::Result<Self> {
        File::open(path).map(Self)
    }
}

/// Bytes of hashes that wait in memory for a disk that does not take them: of some 16,000 records.
const OWED_LEN_MAX: usize = 1 << 20;

/// The end of the file of hashes. What a full disk does not take waits, and is written with what comes next.
pub(crate) struct NodeWriter {
    file: File,
    len: u64,
    owed: Vec<u8>,
}

impl NodeWriter {
    /// Goes on after the first `hashes` hashes of a file that is open for writing, and not for appending.
    pub(crate) fn after(file: File, hashes: u64) -> io::Result<Self> {
        let len = hashes * 32;
        file.set_len(len)?;
        Ok(Self { file, len, owed: Vec::new() })
    }

    /// Writes the roots of an edge in their places: what later records rest on, and all of it that proofs about those need.
    pub(crate) fn put_edge(&mut self, edge: &Edge) -> io::Result<()> {
        let roots = edge_places(edge.size()).zip(edge.roots());
        roots.into_iter().try_for_each(|(place, root)| self.file.write_all_at(root, place * 32))
    }

    /// Adds hashes; false where so many could not be written that the rest is of no use.
    pub(crate) fn push(&mut self, hashes: &[u8]) -> bool {
        self.owed.extend_from_slice(hashes);
        self.settle() || self.owed.len() <= OWED_LEN_MAX
    }

    /// Writes what waits; false where the disk does not take it.
    pub(crate) fn settle(&mut self) -> bool {
        // At its place, so that what a disk took in part is written over.
        if !self.owed.is_empty() && self.file.write_all_at(&self.owed, self.len).is_ok() {
            self.len += self.owed.len() as u64;
            self.owed.clear();
        }
        self.owed.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Nodes for Vec<Hash> {
        fn at(&self, place: u64) -> io::Result<Hash> {
            self.get(place as usize).copied().ok_or_else(|| none("no such hash"))
        }
    }

    /// The leaves and roots of Certificate Transparency's own tests.
    const LEAVES: [&str; 8] =
        ["", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f"];
    const ROOTS: [&str; 8] = [
        "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
        "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
        "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
        "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
        "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
        "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
        "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
    ];

    /// A tree, its hashes, and the root of each size.
    fn tree(size: u64, leaf: impl Fn(u64) -> Hash) -> (Edge, Vec<Hash>, Vec<Hash>) {
        let (mut edge, mut nodes, mut roots) = (Edge::default(), Vec::new(), vec![Edge::default().root()]);
        for n in 0..size {
            edge.push(leaf(n), |hash| nodes.push(*hash));
            roots.push(edge.root());
        }
        (edge, nodes, roots)
    }

    #[test]
    fn the_vectors_of_certificate_transparency_hold() {
        let leaf = |n: u64| leaf_hash(&hex::decode(LEAVES[n as usize]).unwrap());
        let (_, nodes, roots) = tree(8, leaf);
        let empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(hex::encode(roots[0]), empty);
        assert_eq!(roots.iter().skip(1).map(hex::encode).collect::<Vec<_>>(), ROOTS);
        // RFC 6962, section 2.1.3, in this tree: the path of leaf 0 in the tree of seven.
        let path: Vec<_> = inclusion_proof(&nodes, 0, 7).unwrap().iter().map(hex::encode).collect();
        assert_eq!(path.first().unwrap(), "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7");
        assert_eq!(path.len(), 3);
    }

    #[test]
    fn hashes_that_a_disk_did_not_take_are_written_later() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tree");
        let mut nodes = NodeWriter::after(File::create(&path).unwrap(), 0).unwrap();
        assert!(nodes.push(&[1; 32]));
        let writable = std::mem::replace(&mut nodes.file, File::open(&path).unwrap());
        assert!(nodes.push(&[2; 32]) && !nodes.settle());
        assert_eq!(std::fs::read(&path).unwrap(), [1; 32]);
        nodes.file = writable;
        assert!(nodes.push(&[3; 32]));
        assert_eq!(std::fs::read(&path).unwrap(), [[1; 32], [2; 32], [3; 32]].concat());
        nodes.file = File::open(&path).unwrap();
        assert!(!nodes.push(&vec![4; OWED_LEN_MAX + 1]));
    }

    #[test]
    fn every_proof_of_every_size_holds_and_no_other_does() {
        let leaf = |n: u64| leaf_hash(&n.to_le_bytes());
        let (edge_of_all, nodes, roots) = tree(70, leaf);
        assert_eq!(edge(&nodes, 70).unwrap(), edge_of_all);
        assert_eq!(final_hashes(70), nodes.len() as u64);
        for size in 1..=70u64 {
            assert_eq!(edge(&nodes, size).unwrap().root(), roots[size as usize]);
            for index in 0..size {
                let proof = inclusion_proof(&nodes, index, size).unwrap();
                let root = |leaf: &Hash, index, proof: &[Hash]| root_by_inclusion(leaf, index, size, proof);
                let right = Some(roots[size as usize]);
                assert_eq!(root(&leaf(index), index, &proof), right);
                assert_ne!(root(&leaf(index + 1), index, &proof), right);
                assert_ne!(root(&leaf(index), (index + 1) % (size + 1), &proof), right);
                let longer = [proof.as_slice(), &[[0; 32]]].concat();
                assert_ne!(root(&leaf(index), index, &longer), right);
                if let Some((_, shorter)) = proof.split_last() {
                    assert_ne!(root(&leaf(index), index, shorter), right);
                }
            }
            for before in 1..=size {
                let proof = consistency_proof(&nodes, before, size).unwrap();
                let (first, second) = (&roots[before as usize], &roots[size as usize]);
                assert!(is_consistent((before, first), (size, second), &proof), "{before} {size}");
                assert!(!is_consistent((before, &[1; 32]), (size, second), &proof));
                assert!(!is_consistent((before, first), (size, &[1; 32]), &proof));
                let longer = [proof.as_slice(), &[[0; 32]]].concat();
                assert!(!is_consistent((before, first), (size, second), &longer));
            }
        }
        assert!(inclusion_proof(&nodes, 5, 5).is_err() && consistency_proof(&nodes, 0, 5).is_err());
        assert!(consistency_proof(&nodes, 6, 5).is_err());
    }
}
