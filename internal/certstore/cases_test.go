package certstore

import (
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// rotationCase is something that happens to certificates in the field, and the tests that hold the right behaviour. Names
// without a prefix are tests of this package, others begin with the folder below internal. why says what no test here can
// show.
type rotationCase struct {
	number int
	what   string
	tests  string
	why    string
}

func rotationCases() []rotationCase {
	return []rotationCase{
		{1, "a file is replaced by renaming another over it", "TestEventsAloneSeeEveryReplacement TestPollAloneSeesEveryReplacement", ""},
		{2, "a file is truncated and written in place", "TestEventsAloneSeeEveryReplacement TestReaderNeverAcceptsAMixedPair TestStoreFollowsBurstsOfRotations", ""},
		{3, "a file is written slowly, or never to its end", "TestEventsAloneSeeEveryReplacement TestUnusableFilesKeepTheCurrentCertificate TestShorterChainHasToLast", ""},
		{4, "certificate and key arrive one after the other, in either order", "TestReaderNeverAcceptsAMixedPair TestUnusableFilesKeepTheCurrentCertificate", ""},
		{5, "only the certificate is renewed, the key stays", "TestRenewalWithTheSameKeyNeedsNoKeyFile", ""},
		{6, "only the key is replaced and its certificate never comes", "TestUnusableFilesKeepTheCurrentCertificate", ""},
		{7, "a mounted secret changes by swapping one link", "TestEventsAloneSeeEveryReplacement TestReaderNeverAcceptsAMixedPair", ""},
		{8, "links are pointed elsewhere, or what they point to is rewritten elsewhere", "TestEventsAloneSeeEveryReplacement TestTrailOfALoopEnds", ""},
		{9, "the folder is replaced, removed, or its file system goes away", "TestEventsAloneSeeEveryReplacement TestMissingFolderIsWatchedFromTheNearestParent TestPollAloneSeesEveryReplacement", ""},
		{10, "one file is mounted by itself, so that its replacement is invisible", "TestMountedSingleFileIsNamed", ""},
		{11, "the lower layer of an overlay changes without events", "TestPollAloneSeesEveryReplacement", ""},
		{12, "the file system raises no events", "TestPollAloneSeesEveryReplacement TestNetworkFileSystemsArePolled", ""},
		{13, "events are lost or there are no more watches", "TestLostEventsLeadToALookAtEverything TestFoldersBeyondTheLimitArePolled TestWatcherWithoutEventsStillWorks", ""},
		{14, "the files change between the first reading and the first watch", "TestChangeBetweenFirstReadAndWatchIsSeen", ""},
		{15, "times, modes or bytes change and the certificate does not, or the reverse", "TestSameContentIsNoChange TestChangedContentWithOldTimesIsSeen", ""},
		{16, "something touches the files all the time", "TestEventStormCausesFewReadings TestIdentitiesInOneFolderAreWokenByTheirOwnFiles", ""},
		{17, "the key may be read by everybody, or not by the daemon", "TestKeyModePolicy TestUnreadableKeyNamesItsOwner", ""},
		{18, "the two files are swapped, or both parts are in one", "TestMistakesAreNamed TestEveryUsualFormatLoads", ""},
		{19, "the file comes in another encoding", "TestEveryUsualFormatLoads TestPKCS12Loads TestMistakesAreNamed", ""},
		{20, "the chain is cut where the parser does not mind", "TestTornChainIsNeverAccepted TestShorterChainHasToLast", ""},
		{21, "the chain is in the wrong order or has strangers in it", "TestChainIsPutInOrder", ""},
		{22, "the issuer changes and the hub does not know the new one", "TestMissNamesANewIssuer hub.TestRefusedCandidateNeverStopsTheFlow", ""},
		{23, "the certificate is another identity's", "TestUnusableFilesKeepTheCurrentCertificate TestInspectNamesTheRule", ""},
		{24, "two identities are given the same certificate", "TestSharedCertificatesAreFound", ""},
		{25, "the hub knows the thumbprint only later", "TestMissedCandidateIsRetriedOnTheLadder TestMissNamesANewIssuer", ""},
		{26, "an older certificate comes back", "TestOlderCertificateIsTakenAndMarked", ""},
		{27, "the new certificate has expired", "TestUnusableFilesKeepTheCurrentCertificate TestExpiredCurrentLeavesNothingToLose", ""},
		{28, "the new certificate is not valid yet", "TestFutureCertificateWaitsForItsTime TestTimeStepExpiresNothing", ""},
		{29, "usage, algorithm, key size or serial number break a rule", "TestInspectNamesTheRule TestMistakesAreNamed", ""},
		{30, "the kind of key changes", "TestKeyTypeMayChange", ""},
		{31, "a good certificate takes over under load", "hub.TestRotationUnderLoadLosesAndDelaysNothing", ""},
		{32, "the hub refuses the new certificate", "TestMissedCandidateIsRetriedOnTheLadder TestChangedFilesAreTriedAtOnceAfterAMiss hub.TestRefusedCandidateNeverStopsTheFlow", ""},
		{33, "the network fails during a trial", "TestNoVerdictHoldsNothingAgainstACandidate hub.TestOutageNeverDecidesARotation", ""},
		{34, "a restart finds bad files", "TestRestartWithBadFilesUsesTheLastGoodCertificate TestExpiredCopyGivesWayToGoodFiles", ""},
		{35, "the renewal is left beside the files for a trial", "TestStagedFilesAreTriedBeforeTheyTakeTheirPlace TestStagedFilesInAReadOnlyFolderStayThere", ""},
		{36, "certificates change while the identity is offline", "TestOnlyTheNewestCandidateMatters hub.TestRefusedCandidateFoundOfflineFallsBackAtOnce hub.TestRotationHappensRightAfterAnOutage", ""},
		{37, "a new certificate comes while a session waits", "hub.TestChangedCertificateEndsTheWaitOnce", ""},
		{38, "a renewer has gone wild", "TestRenewerGoneWildIsHeldBack", ""},
		{39, "all identities are renewed at once", "TestManyRenewedAtOnce hub.TestManyRenewalsAtOnceFinishAndLoseNothing", ""},
		{40, "a resumed TLS session would bring the old certificate back", "hub.TestTwoIdentitiesOnOneHostNeverShareATLSSession", ""},
		{41, "a second connection beside the first would displace it", "hub.TestCandidateRefusedInTLSDoesNotTouchTheWorkingConnection", ""},
		{42, "subscriptions must be there again after the change", "hub.TestCommandsArriveAfterARotationToo", ""},
		{43, "a method call is under way during the change", "hub.TestAnswersComeBeforeTheOldConnectionIsReplaced", ""},
		{44, "a reload is asked for during a trial", "TestRescanDuringATrialOffersTheSameCandidate", ""},
		{45, "the daemon is stopped during a trial", "TestStopDuringATrialLeavesNoHalfState hub.TestStopDuringACutOverLeavesNothingBehind", ""},
		{46, "power goes between a proof and its record", "TestEveryStepOfACommitMayFail TestStopDuringATrialLeavesNoHalfState", ""},
		{47, "the disk is full or read-only at a commit", "TestEveryStepOfACommitMayFail TestStagedFilesInAReadOnlyFolderStayThere", ""},
		{48, "the renewer deletes the files first", "TestUnusableFilesKeepTheCurrentCertificate TestEventsAloneSeeEveryReplacement", ""},
		{49, "the current certificate expires while there is no connection", "TestExpiredCurrentLeavesNothingToLose hub.TestExpiredCurrentAlternatesUntilTheCandidateWorks", ""},
		{50, "a certificate comes near its end", "TestExpiryIsToldInTime", ""},
		{51, "the hub's root changes, or its bundle is damaged", "TestBadTrustFileKeepsTheOldPool TestTrustFileIsFollowedByEvents TestNoRootMustNotMeanEveryRoot", ""},
		{52, "the server's list of issuers does not name ours", "TestCertificateIsSentWhateverTheServerNames", ""},
		{53, "the server asks to renegotiate", "", "crypto/tls refuses unless told otherwise, and the certificate is sent in the first handshake anyway, see case 52"},
		{54, "the key is in a TPM or a smart card", "TestMistakesAreNamed", ""},
		{55, "the passphrase changes with the key", "TestRotatedPassphraseIsReadAgain", ""},
		{56, "parsing a key panics", "TestPanicInKeyParsingIsAnInvalidFile", ""},
		{57, "the files are a copy that the service manager made at the start", "TestSystemdCredentialIsNamed", ""},
		{58, "there is no certificate yet", "TestFirstCertificateIsUsedWhenItAppears TestMissingFolderIsWatchedFromTheNearestParent", ""},
		{59, "the clock is wrong at boot", "TestBootInNineteenSeventy TestTimeStepExpiresNothing TestTrustInTheClock", ""},
		{60, "a reload names other files", "TestNewPathsLeaveTheRunningCertificateAlone", ""},
	}
}

// TestEveryRotationCaseIsCovered holds the table above to what there is.
func TestEveryRotationCaseIsCovered(t *testing.T) {
	there := map[string][]string{"": testsIn(t, "."), "hub.": testsIn(t, "../hub")}
	for i, c := range rotationCases() {
		if c.number != i+1 || c.what == "" {
			t.Errorf("case %d is number %d, %q", i+1, c.number, c.what)
		}
		names := strings.Fields(c.tests)
		if (len(names) == 0) == (c.why == "") {
			t.Errorf("case %d has neither a test nor a reason, or both", c.number)
		}
		for _, name := range names {
			from := ""
			if at := strings.Index(name, "."); at >= 0 {
				from, name = name[:at+1], name[at+1:]
			}
			if !slices.Contains(there[from], name) {
				t.Errorf("case %d: there is no %s%s", c.number, from, name)
			}
		}
	}
	if n := len(rotationCases()); n != 60 {
		t.Errorf("%d cases", n)
	}
}

func testsIn(t testing.TB, dir string) []string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*_test.go"))
	must(t, err)
	var names []string
	for _, path := range files {
		f, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
		must(t, err)
		for _, d := range f.Decls {
			if fn, ok := d.(*ast.FuncDecl); ok && strings.HasPrefix(fn.Name.Name, "Test") {
				names = append(names, fn.Name.Name)
			}
		}
	}
	return names
}
