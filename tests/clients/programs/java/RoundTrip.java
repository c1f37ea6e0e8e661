// A round trip with the client that openapi-generator makes: see tests/clients/__main__.py.

import java.io.File;
import java.nio.file.Files;
import java.nio.file.Path;
import java.security.MessageDigest;
import java.time.OffsetDateTime;
import java.util.HexFormat;
import java.util.List;
import org.openapitools.client.ApiClient;
import org.openapitools.client.ApiException;
import org.openapitools.client.api.ImagesApi;
import org.openapitools.client.api.JobsApi;
import org.openapitools.client.api.OperationsApi;
import org.openapitools.client.model.Image;
import org.openapitools.client.model.Job;
import org.openapitools.client.model.JobStatus;
import org.openapitools.client.model.Problem;
import org.openapitools.client.model.ProblemCode;
import org.openapitools.client.model.Status;

public class RoundTrip {
  static final Path FOLDER = Path.of(System.getenv("FILES"));
  static final ApiClient CLIENT = new ApiClient();

  interface Call {
    void run() throws Exception;
  }

  static void check(boolean holds, String what, Object... details) {
    if (!holds) {
      System.out.println("FAILED " + what + " " + List.of(details));
      System.exit(1);
    }
    System.out.println("ok " + what);
  }

  static File file(String name) {
    return FOLDER.resolve(name).toFile();
  }

  static Problem problem(int status, Call call) throws Exception {
    try {
      call.run();
    } catch (ApiException refused) {
      check(refused.getCode() == status, "status " + status, refused.toString());
      return CLIENT.getObjectMapper().readValue(refused.getResponseBody(), Problem.class);
    }
    throw new IllegalStateException("not refused");
  }

  static Image upload(ImagesApi images, String name) throws Exception {
    return images.uploadImage(
        ImagesApi.APIUploadImageRequest.newBuilder().img(file(name)).prefer("wait=30").build());
  }

  static String job(JobsApi jobs, OffsetDateTime start, String... names) throws Exception {
    List<File> files = java.util.Arrays.stream(names).map(RoundTrip::file).toList();
    return jobs.createJob(
            JobsApi.APICreateJobRequest.newBuilder().imgs(files).notBefore(start).build())
        .getJobId();
  }

  static Job get(JobsApi jobs, String id) throws Exception {
    return jobs.getJob(JobsApi.APIGetJobRequest.newBuilder().jobId(id).build());
  }

  public static void main(String[] arguments) throws Exception {
    CLIENT.updateBaseUri(System.getenv("GLIMPSE_URL"));
    ImagesApi images = new ImagesApi(CLIENT);
    JobsApi jobs = new JobsApi(CLIENT);

    Image image = upload(images, "1.jpg");
    check(image.getStatus() == Status.STATUS_SUCCESS, "upload", image);
    check(!image.getAnnotations().isEmpty(), "labels");
    byte[] data = Files.readAllBytes(FOLDER.resolve("2.jpg"));
    String hash = HexFormat.of().formatHex(MessageDigest.getInstance("SHA-256").digest(data));
    check(upload(images, "2.jpg").getImageHash().equals(hash), "upload under its hash");
    image = images.getImage(ImagesApi.APIGetImageRequest.newBuilder().imageHash(hash).build());
    check(image.getStatus() == Status.STATUS_SUCCESS, "get", image);

    String three = job(jobs, null, "1.jpg", "2.jpg", "3.jpg");
    Job state = get(jobs, three);
    for (int tries = 0; state.getStatus() != JobStatus.JOB_STATUS_COMPLETED && tries < 300; tries++) {
      Thread.sleep(100);
      state = get(jobs, three);
    }
    check(state.getSucceeded() == 3, "job of three", state);
    int results =
        jobs.getJobResults(JobsApi.APIGetJobResultsRequest.newBuilder().jobId(three).build())
            .getResults()
            .size();
    check(results == 3, "results", results);
    String newest =
        jobs.listJobs(JobsApi.APIListJobsRequest.newBuilder().build()).getJobs().get(0).getJobId();
    check(newest.equals(three), "list jobs");
    // The generator sends a File as the JSON text of its path where a body is raw bytes, as those of
    // putImage and createZipJob are. Forms carry images and zips as they are.
    state = get(jobs, job(jobs, null, "images.zip"));
    check(state.getTotal() == 3, "job from a zip", state);
    String later = job(jobs, OffsetDateTime.now().plusDays(1), "3.jpg");
    state = jobs.cancelJob(JobsApi.APICancelJobRequest.newBuilder().jobId(later).build());
    check(state.getStatus() == JobStatus.JOB_STATUS_CANCELLED, "cancel", state);

    Problem refused = problem(415, () -> upload(images, "text.txt"));
    check(refused.getCode() == ProblemCode.UNSUPPORTED_IMAGE, "415", refused);
    refused = problem(413, () -> upload(images, "large.jpg"));
    check(refused.getCode() == ProblemCode.IMAGE_TOO_LARGE, "413", refused);
    check(refused.getMaxBytes() > 0, "with the limit");
    String unknown = "0".repeat(64);
    refused =
        problem(
            404,
            () ->
                images.getImage(
                    ImagesApi.APIGetImageRequest.newBuilder().imageHash(unknown).build()));
    check(refused.getCode() == ProblemCode.NOT_FOUND, "404", refused);
    String records = new OperationsApi(CLIENT).getReadiness().getChecks().get("records");
    check("ok".equals(records), "ready", records);
  }
}
