use halfbyte_quant::WeightError;

/// Why a weight cannot be solved.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum SolveError {
    /// A weight holds NaN or infinity.
    #[error(
        "weight row {row}, column {column} is {value}, wanted a finite number; the checkpoint is damaged or overflowed"
    )]
    WeightNotFinite {
        /// Output feature.
        row: usize,
        /// Input feature.
        column: usize,
        /// What stood there.
        value: f32,
    },
    /// The statistics hold NaN or infinity.
    #[error(
        "hessian row {row}, column {column} is {value}, wanted a finite number; the calibration forward overflowed"
    )]
    HessianNotFinite {
        /// Input feature.
        row: usize,
        /// Input feature.
        column: usize,
        /// What stood there.
        value: f32,
    },
    /// Weight, statistics or factor disagree about the number of input features.
    #[error("{part}: {found}, wanted {wanted} for this weight")]
    Shape {
        /// What disagrees.
        part: &'static str,
        /// Elements or features found.
        found: usize,
        /// Elements or features needed.
        wanted: usize,
    },
    /// The mean of `|x|` holds something that is no mean.
    #[error(
        "mean_abs of channel {channel} is {value}, wanted a finite number of zero or more; the calibration forward overflowed"
    )]
    MeanAbs {
        /// Input feature.
        channel: usize,
        /// What stood there.
        value: f32,
    },
    /// A channel cannot be scaled by this.
    #[error("scale of channel {channel} is {value}, wanted a finite number above zero")]
    ChannelScale {
        /// Input feature.
        channel: usize,
        /// What stood there.
        value: f32,
    },
    /// A range cannot be cut to this.
    #[error("clip limit of row {row}, group {group} is {value}, wanted a number of zero or more")]
    Limit {
        /// Output feature.
        row: usize,
        /// Group of input features.
        group: usize,
        /// What stood there.
        value: f32,
    },
    /// No scales of a search gave a loss that is a finite number.
    #[error(
        "none of {tried} scales tried on {channels} channels gave a finite loss; look for overflow in the module's forward"
    )]
    NoFiniteLoss {
        /// Candidates tried.
        tried: usize,
        /// Channels of the input.
        channels: usize,
    },
    /// An option is out of its range.
    #[error("{option}: {found}, wanted {wanted}")]
    Option {
        /// Its name as in the configuration.
        option: &'static str,
        /// The value given.
        found: String,
        /// What is allowed.
        wanted: &'static str,
    },
    /// Columns in activation order with groups found on the way would need a stored group per column.
    #[error(
        "desc_act with static_groups: false needs a stored group per column, which no format here writes; use static_groups: true"
    )]
    NeedsStaticGroups,
    /// The default recipe knows no moving groups.
    #[error(
        "static_groups: false belongs to the reference recipe; use static_groups: true, or recipe: reference"
    )]
    DynamicGroups,
    /// A factor made with other options is not the one these options ask for.
    #[error(
        "factor was made for another {option}; factor the statistics again with the options of the solve"
    )]
    FactorMismatch {
        /// `recipe` or `desc_act`.
        option: &'static str,
    },
    /// No damping made the Hessian positive definite.
    #[error(
        "hessian is not positive definite even with {damp:.3} of its mean diagonal added; use more or cleaner calibration text"
    )]
    NotPositiveDefinite {
        /// The last damping tried, a fraction of the mean diagonal.
        damp: f64,
    },
    /// The solved parts do not make a weight.
    #[error(transparent)]
    Weight(#[from] WeightError),
}
