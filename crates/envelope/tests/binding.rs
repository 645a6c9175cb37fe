//! A sealed thing opens only where it was sealed.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use custody_envelope::*;
use proptest::prelude::*;

fn address() -> BlockAddress {
    BlockAddress { volume: [7; 16], extent: 3, block: 9, generation: 1, sequence: 42, hole: false }
}

fn sealer(provider: Provider) -> (VolumeKeys, WrappedDek, BlockSealer) {
    let keys = VolumeKey::from_bytes(&[5; 32]).unwrap().derive(provider);
    let at = DekAddress { volume: [7; 16], extent: 3, generation: 1 };
    let wrapped = keys.wrap_dek(at, &Dek::generate().unwrap()).unwrap();
    let sealer = keys.unwrap_dek(at, &wrapped).unwrap();
    (keys, wrapped, sealer)
}

#[test]
fn a_moved_or_renumbered_block_does_not_open() {
    let (_, _, sealer) = sealer(Provider::AwsLc);
    let mut block = vec![0xA5; 4096];
    let nonce = NonceSource::new().draw().unwrap();
    let tag = sealer.seal(&address(), &nonce, &mut block);
    let mut out = vec![0; 4096];
    for moved in [
        BlockAddress { volume: [8; 16], ..address() },
        BlockAddress { extent: 4, ..address() },
        BlockAddress { block: 10, ..address() },
        BlockAddress { generation: 2, ..address() },
        BlockAddress { sequence: 43, ..address() },
        BlockAddress { hole: true, ..address() },
    ] {
        assert_eq!(sealer.open(&moved, &nonce, &block, &tag, &mut out), Err(OpenError), "{moved:?}");
    }
    sealer.open(&address(), &nonce, &block, &tag, &mut out).unwrap();
    assert_eq!(out, vec![0xA5; 4096]);
}

#[test]
fn every_bit_flip_of_a_wrapped_data_key_is_found() {
    let (keys, wrapped, _) = sealer(Provider::AwsLc);
    let at = DekAddress { volume: [7; 16], extent: 3, generation: 1 };
    for bit in 0..WrappedDek::LEN * 8 {
        let mut bytes = *wrapped.as_bytes();
        bytes[bit / 8] ^= 1 << (bit % 8);
        assert!(keys.unwrap_dek(at, &WrappedDek::from_bytes(bytes)).is_err());
    }
    for at in [
        DekAddress { extent: 4, ..at },
        DekAddress { generation: 2, ..at },
        DekAddress { volume: [0; 16], ..at },
    ] {
        assert!(keys.unwrap_dek(at, &wrapped).is_err());
    }
}

#[test]
fn the_associated_data_is_frozen() {
    assert_eq!(
        hex::encode(address().aad()),
        "637573746f64790107070707070707070707070707070707030000000900010\
         02a00000000000000"
            .replace(' ', "")
    );
}

#[test]
fn streams_keep_order_and_end() {
    let key = StreamKey::generate().unwrap();
    let sealer = key.sealer(Provider::AwsLc, [1; 16]);
    let chunk = |plain: &[u8]| [&[0; CHUNK_HEAD_LEN], plain].concat();
    let (mut a, mut b) = (chunk(b"one"), chunk(b"two"));
    sealer.seal(0, false, &mut a).unwrap();
    sealer.seal(1, true, &mut b).unwrap();
    assert_eq!(a.len(), 3 + CHUNK_OVERHEAD_LEN);
    let open = |chunks: &[(&[u8], bool)]| {
        let (opener, mut plain) = (key.sealer(Provider::RustCrypto, [1; 16]), Default::default());
        (0..).zip(chunks).all(|(i, (c, last))| {
            let opened = opener.open(i, *last, c, &mut plain).is_ok();
            assert_eq!(plain.is_empty(), !opened);
            opened
        })
    };
    assert!(open(&[(&a, false), (&b, true)]));
    assert!(!open(&[(&b, true)]), "a chunk was dropped");
    assert!(!open(&[(&b, true), (&a, false)]), "chunks were swapped");
    assert!(!open(&[(&a, true)]), "the stream was cut");
    assert!(!open(&[(&a[..a.len() - 1], false)]));
    assert!(!open(&[(&[], false)]));
}

#[test]
fn records_open_only_in_their_context() {
    let root = SealingKey::generate().unwrap();
    let sealed = root.seal(b"vaults/a/keys/b", b"private").unwrap();
    assert_eq!(&root.open(b"vaults/a/keys/b", &sealed).unwrap()[..], b"private");
    assert!(root.open(b"vaults/a/keys/c", &sealed).is_err());
    assert!(SealingKey::generate().unwrap().open(b"vaults/a/keys/b", &sealed).is_err());
    assert!(!format!("{root:?}").contains('['));
}

#[test]
fn nonces_do_not_repeat() {
    let mut source = NonceSource::new();
    let drawn: std::collections::HashSet<_> = (0..10_000).map(|_| source.draw().unwrap()).collect();
    assert_eq!(drawn.len(), 10_000);
}

proptest! {
    #[test]
    fn providers_open_each_other(data in proptest::collection::vec(any::<u8>(), 0..9000), nonce: [u8; 12], key: [u8; 32]) {
        let (a, b) = (Provider::AwsLc.aead(&key), Provider::RustCrypto.aead(&key));
        let (mut x, mut y) = (data.clone(), data.clone());
        let (tx, ty) = (a.seal(&nonce, b"ad", &mut x), b.seal(&nonce, b"ad", &mut y));
        prop_assert_eq!(&x, &y);
        prop_assert_eq!(tx, ty);
        let mut out = vec![0; data.len()];
        b.open(&nonce, b"ad", &x, &tx, &mut out).unwrap();
        prop_assert_eq!(out, data);
    }
}
