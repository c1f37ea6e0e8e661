// The HTTP client of the JDK, with its default settings: see `Program` in base.py.

import java.io.BufferedReader;
import java.io.ByteArrayOutputStream;
import java.io.InputStreamReader;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpRequest.BodyPublishers;
import java.net.http.HttpResponse;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Base64;

public class Client {
  static final String BOUNDARY = "glimpse-boundary";

  static byte[] form(String[] fields) throws Exception {
    ByteArrayOutputStream body = new ByteArrayOutputStream();
    for (int at = 3; at < fields.length; at += 2) {
      String name = fields[at].replace("\"", "%22");
      String head =
          "--%s\r\nContent-Disposition: form-data; name=\"%s\"; filename=\"%s\"\r\n\r\n"
              .formatted(BOUNDARY, fields[2], name);
      body.writeBytes(head.getBytes(StandardCharsets.UTF_8));
      body.writeBytes(Files.readAllBytes(Path.of(fields[at + 1])));
      body.writeBytes("\r\n".getBytes(StandardCharsets.UTF_8));
    }
    body.writeBytes(("--" + BOUNDARY + "--\r\n").getBytes(StandardCharsets.UTF_8));
    return body.toByteArray();
  }

  static HttpRequest request(String[] fields) throws Exception {
    HttpRequest.Builder request = HttpRequest.newBuilder(URI.create(fields[1]));
    switch (fields[0]) {
      case "post" ->
          request
              .header("Content-Type", "image/jpeg")
              .POST(BodyPublishers.ofFile(Path.of(fields[2])));
      case "form" ->
          request
              .header("Content-Type", "multipart/form-data; boundary=" + BOUNDARY)
              .POST(BodyPublishers.ofByteArray(form(fields)));
      default -> request.GET();
    }
    return request.build();
  }

  public static void main(String[] arguments) throws Exception {
    HttpClient client = HttpClient.newHttpClient();
    BufferedReader lines =
        new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
    for (String line = lines.readLine(); line != null; line = lines.readLine()) {
      try {
        HttpResponse<byte[]> response =
            client.send(request(line.split("\t")), HttpResponse.BodyHandlers.ofByteArray());
        String body = Base64.getEncoder().encodeToString(response.body());
        System.out.println(response.statusCode() + " " + body);
      } catch (Exception error) {
        System.out.println("error: " + error.toString().replace("\n", " "));
      }
    }
    System.exit(0);
  }
}
