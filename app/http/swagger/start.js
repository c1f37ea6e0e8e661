// Starts Swagger UI. A file of its own, because the content policy permits no inline script.
SwaggerUIBundle({
  url: "openapi.json", // relative: PUBLIC_URL may have a path
  dom_id: "#swagger-ui",
  layout: "BaseLayout",
  presets: [SwaggerUIBundle.presets.apis],
  deepLinking: true,
  showExtensions: true,
  showCommonExtensions: true,
  persistAuthorization: false,
  validatorUrl: null, // no other host sees the schema
});
