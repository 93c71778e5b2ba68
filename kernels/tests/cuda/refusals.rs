//! The arguments that operations refuse, without a GPU.

use fovea_kernels::confusion::CountLayout;
use fovea_kernels::cuda::nvrtc::Search;
use fovea_kernels::cuda::{
    ConfusionCounts, Error, FusedAdam, GlobalView, Kernels, Op, PatchCrop, Resize, SumSquares,
    ToBf16, resize_table, spec_records,
};
use fovea_kernels::loss::{LOSSES, LossAt, LossSettings};
use fovea_kernels::{Augment, CropSpec, DType};
use fovea_task::Kind;

/// The error's text; its second line must say what to do.
fn refusal(op: &dyn Op) -> String {
    let text = op.launches().unwrap_err().to_string();
    assert!(text.contains("\n  help: "), "{text}");
    text
}

const CROP: PatchCrop<'_> = PatchCrop {
    images: 64,
    image_count: 1,
    specs: 64,
    n: 2,
    step: 64,
    size: 8,
    augment: None,
    dtype: DType::Bf16,
    out: 64,
};

#[test]
fn a_crop_that_cannot_be_is_refused() {
    assert_eq!(CROP.launches().unwrap().len(), 1);
    let refused = |crop: PatchCrop<'_>| refusal(&crop);
    assert!(refused(PatchCrop { size: 0, ..CROP }).starts_with("PatchCrop::size is 0"));
    assert!(
        refused(PatchCrop {
            size: 20_000,
            ..CROP
        })
        .starts_with("PatchCrop::size is 20000")
    );
    assert!(refused(PatchCrop { out: 0, ..CROP }).starts_with("PatchCrop::out is null"));
    assert!(refused(PatchCrop { out: 65, ..CROP }).contains("1 beyond a multiple of 2"));
    assert!(refused(PatchCrop { specs: 68, ..CROP }).contains("4 beyond a multiple of 8"));
    assert!(
        refused(PatchCrop {
            n: usize::MAX,
            ..CROP
        })
        .contains("overflows")
    );
    assert!(refused(PatchCrop { n: 1 << 33, ..CROP }).contains("split the batch"));
    let augment = Augment {
        contrast: -1.0,
        ..Augment::default()
    };
    let crop = PatchCrop {
        augment: Some(&augment),
        ..CROP
    };
    assert!(refused(crop).starts_with("Augment::contrast is -1"));
    let nothing = PatchCrop {
        n: 0,
        out: 0,
        ..CROP
    };
    assert_eq!(nothing.launches(), Ok(vec![]));
}

#[test]
fn specs_are_refused_as_the_twin_refuses_them() {
    let spec = |image, y, x| CropSpec {
        image,
        y,
        x,
        sample_id: 4,
    };
    let text = |spec, size| {
        spec_records(&[(20, 30)], &[spec], size)
            .unwrap_err()
            .to_string()
    };
    assert!(text(spec(1, 0, 0), 8).contains("asks for image 1, but only 1"));
    assert!(text(spec(0, 13, 0), 8).contains("rows 13..13+8"));
    assert!(text(spec(0, 0, u32::MAX), 8).contains("columns 4294967295"));
    assert!(text(spec(0, 0, 0), 0).contains("size is 0"));
    assert_eq!(
        spec_records(&[(20, 30)], &[spec(0, 12, 22)], 8)
            .unwrap()
            .len(),
        1
    );
}

#[test]
fn other_operations_refuse_what_does_not_fit() {
    let resize = Resize {
        images: 64,
        image_count: 1,
        selection: 64,
        n: 1,
        input: (10, 10),
        output: (5, 5),
        rows: 64,
        columns: 64,
        out: 64,
    };
    assert!(
        refusal(&Resize {
            input: (0, 1),
            ..resize
        })
        .contains("input's height is 0")
    );
    assert!(
        refusal(&Resize {
            n: 70_000,
            ..resize
        })
        .contains("65535")
    );
    assert!(refusal(&Resize { rows: 0, ..resize }).contains("Resize::rows is null"));
    assert!(
        resize_table(0, 4)
            .unwrap_err()
            .to_string()
            .contains("input is 0")
    );

    let augment = Augment {
        contrast: 0.2,
        ..Augment::default()
    };
    let view = GlobalView {
        resized: 64,
        count: 1,
        selection: 64,
        sample_ids: 64,
        n: 1,
        step: 64,
        size: 8,
        augment: Some(&augment),
        scratch: 64,
        dtype: DType::F32,
        out: 64,
    };
    assert_eq!(view.launches().unwrap().len(), 3);
    assert!(refusal(&GlobalView { scratch: 0, ..view }).contains("scratch is null"));
    let plain = GlobalView {
        augment: None,
        scratch: 0,
        ..view
    };
    assert_eq!(plain.launches().unwrap().len(), 1);

    let settings = LossSettings::plain(4);
    let at = LossAt {
        logits: 64,
        labels: 64,
        n: 1,
        record: 64,
        scale: 64,
        dlogits: 64,
        loss: 64,
        scratch: 64,
    };
    for entry in LOSSES {
        let loss = (entry.build)(&settings).unwrap();
        assert_eq!(loss.op(at).launches().unwrap().len(), 2);
        assert_eq!(loss.op(LossAt { n: 0, ..at }).launches().unwrap().len(), 1);
        let refused = |at: LossAt| refusal(&*loss.op(at));
        assert!(refused(LossAt { n: 1 << 30, ..at }).contains("4294967296"));
        assert!(refused(LossAt { labels: 4, ..at }).contains("labels is 0x4, 4 beyond"));
        assert!(refused(LossAt { record: 0, ..at }).contains("LossAt::record is null"));
        assert!(refused(LossAt { scratch: 4, ..at }).contains("scratch is 0x4, 4 beyond"));
    }

    let counts = ConfusionCounts {
        layout: CountLayout {
            kind: Kind::AnyOf,
            classes: 4,
        },
        logits: 64,
        labels: 64,
        n: 1,
        lowest: 0.0,
        counts: 64,
    };
    assert_eq!(counts.launches().unwrap().len(), 1);
    assert!(
        refusal(&ConfusionCounts {
            labels: 4,
            ..counts
        })
        .contains("labels is 0x4, 4 beyond")
    );
    assert!(
        refusal(&ConfusionCounts {
            counts: 0,
            ..counts
        })
        .contains("counts is null")
    );
    assert!(
        refusal(&ConfusionCounts {
            n: 1 << 30,
            ..counts
        })
        .contains("4294967296")
    );

    let adam = FusedAdam {
        params: 64,
        grads: 64,
        m: 64,
        v: 64,
        working: 0,
        n: 1,
        scalars: 64,
    };
    assert!(refusal(&FusedAdam { m: 66, ..adam }).contains("FusedAdam::m is 0x42, 2 beyond"));
    assert!(
        refusal(&ToBf16 {
            src: 0,
            dst: 64,
            n: 1
        })
        .contains("ToBf16::src is null")
    );
    let sum = SumSquares {
        x: 64,
        n: 1,
        total: 64,
        scratch: 0,
    };
    assert!(refusal(&sum).contains("scratch is null"));
}

/// On a machine with a GPU this loads the kernels; elsewhere the error names the driver.
#[test]
fn without_a_driver_loading_says_so() {
    match Kernels::load(0, &Search::from_env(), None) {
        Ok(kernels) => assert!(kernels.device().arch >= fovea_kernels::cuda::Arch(75)),
        Err(error @ (Error::DriverMissing | Error::Driver { .. })) => {
            assert!(error.to_string().contains("\n  help: "), "{error}");
        }
        Err(error) => panic!("{error}"),
    }
}
